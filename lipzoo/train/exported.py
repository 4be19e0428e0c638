"""Exported weights: one safetensors file that holds a model, what is proved of it, and how it was made.

Its tensors are the weights by name, as they were stored (`lipzoo.train.packed`). Its metadata are strings:

- `lipzoo`, `schema`: the version that wrote it, and the number of this layout.
- `recipe`: JSON, as in checkpoints. `step`, `weights` (`model` or `average`), `stored` (`float32`, `int8`, …).
- `certificate`: JSON, as `lipzoo certify --json` prints it. `evaluation`: as in evaluation.json. `command`: what
  trained it. The last two may be missing.
- `tensors_sha256`: JSON, the sha256 of every tensor with its name, type and shape. `weights_sha256`: of the weights as
  they are loaded, which certificates name. `metadata_sha256`: of all other metadata.

So a change of one byte shows, wherever it is; whoever changes file and digests alike is not stopped, and a certificate
in a file is a claim until `lipzoo certify` has computed it anew.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lipzoo.system.errors import UserError
from lipzoo.system.files import LARGEST_JSON, check_regular, parse_json, write_bytes
from lipzoo.system.version import VERSION
from lipzoo.train.digests import Arrays, digest, json_digest
from lipzoo.train.reading import Damaged, reading

SCHEMA = 1
SUFFIX = ".safetensors"
TYPES: Mapping[str, Any] = {"F32": np.float32, "I8": np.int8, "F8_E4M3": jnp.float8_e4m3fn, "BF16": jnp.bfloat16}
"""The types of what checkpoints hold, as the format calls them."""
NOTED = ("lipzoo", "recipe", "step", "weights", "stored", "certificate", "tensors_sha256", "weights_sha256")
"""Metadata that every file has, beside `schema` and `metadata_sha256`."""
JSON = ("recipe", "certificate", "evaluation", "tensors_sha256")


class Exported(NamedTuple):
    """A file: its tensors, and its metadata with the JSON in them read."""

    arrays: Arrays
    notes: dict[str, Any]


def write(path: Path, arrays: Arrays, notes: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all: what lay there before stays until all of the new one is on the disk."""
    from safetensors.numpy import save  # Few tools need it.

    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    notes = {**notes, "schema": SCHEMA, "tensors_sha256": _digests(arrays)}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in notes.items()}
    content = save(arrays, {**texts, "metadata_sha256": json_digest(texts)})
    try:
        write_bytes(path, content)
    except OSError as error:
        kept = ": what lay there is as it was" if path.exists() else ""
        raise UserError(f"cannot write {path} ({error.strerror}){kept}") from error


def _digests(arrays: Arrays) -> dict[str, str]:
    return {name: digest({name: array}) for name, array in arrays.items()}


def read(path: Path) -> Exported:
    """All of a file, every digest verified. Raises Damaged, or UserError if it is another kind of file."""
    from safetensors import deserialize

    with reading(path):
        check_regular(path)
        content = path.read_bytes()
        tensors = deserialize(content)
        notes = _notes(path, content)
        arrays = {name: _array(path, name, **tensor) for name, tensor in tensors}
    found, expected = _digests(arrays), notes["tensors_sha256"]
    if different := sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)):
        raise Damaged(f"it does not have the sha256 noted when it was written: {', '.join(different[:3])}")
    return Exported(arrays, notes)


def read_notes(path: Path) -> dict[str, Any]:
    """The metadata alone, verified, without reading the tensors. Raises Damaged, or UserError."""
    with reading(path):
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(8)
            return _notes(path, start + file.read(_length(start)))


def _length(start: bytes) -> int:
    """How long the header is, by the eight bytes that it begins with."""
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > LARGEST_JSON:
        raise ValueError("it does not begin as a safetensors file")
    return length


def _notes(path: Path, content: bytes) -> dict[str, Any]:
    """The metadata in a header. Raises Damaged, or UserError if lipzoo did not write them."""
    header = parse_json(content[8 : 8 + _length(content)].decode())
    texts = dict(header.get("__metadata__", {}))
    if "lipzoo" not in texts or "schema" not in texts:
        raise UserError(f"{path} is a safetensors file that lipzoo did not write: give one of lipzoo export")
    if texts["schema"] != str(SCHEMA):
        by, here = f"lipzoo {texts['lipzoo']:.40}", f"lipzoo {VERSION}"
        raise UserError(f"{path}, written by {by}, has the layout {texts['schema']:.40}, which {here} cannot read")
    expected = texts.pop("metadata_sha256", None)
    if missing := sorted(set(NOTED) - set(texts)):
        raise Damaged(f"its metadata lack {', '.join(missing)}")
    if json_digest(texts) != expected:
        raise Damaged("its metadata do not have the sha256 noted when it was written")
    return {name: parse_json(text) if name in JSON else text for name, text in texts.items()}


def _array(path: Path, name: str, *, dtype: str, shape: list[int], data: bytes | bytearray) -> np.ndarray:
    if dtype not in TYPES:
        raise UserError(f"{path} holds {dtype} in {name}, which no weights of lipzoo {VERSION} are stored as")
    return np.frombuffer(bytes(data), TYPES[dtype]).reshape(shape)
