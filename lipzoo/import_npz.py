"""`python -m lipzoo.import_npz file.npz run_dir`: a published checkpoint as a run that certifies and samples.

Newhouse et al. 2025 stored trained transformers as npz files whose members are pickled objects: `args`, a dictionary of
settings, and `weights_checkpoint_0`, `weights_checkpoint_1`, …, dictionaries from 0, 1, … to nested lists. Unpickling
can run any code, so it is done here by a reader that admits nothing but plain containers, numbers, strings and arrays.
"""

import dataclasses
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from lipzoo.train.checkpoint import save_model
from lipzoo.constraints import ConstraintName
from lipzoo.data import TextConfig
from lipzoo.data.text import SHAKESPEARE
from lipzoo.system.errors import UserError
from lipzoo.system.files import check_regular, write_text
from lipzoo.models import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.recipe import ConstraintConfig, Recipe, TrainingConfig
from lipzoo.train.restore import first_line
from lipzoo.system.terminal import UserPath, guarded
from lipzoo.theory.weight import map_weights, weights

LARGEST_FILE = 1 << 32
"""Unpacked bytes beyond which a file is refused."""
LARGEST_PICKLE = 1 << 28
"""Unpacked bytes beyond which its pickled members are refused: as Python objects they take several times as much."""
MOST_CONTAINERS = 1 << 20
"""Lists and the like in a pickle: each takes a hundred times the one byte that makes it."""
CONSTRAINT_NAMES: Mapping[str, ConstraintName] = {
    "none": "none",
    "soft_cap": "soft-cap",
    "hard_cap": "hard-cap-poly",
    "spec_normalize": "spectral-normalize",
    "orthogonal": "stiefel",
    "spec_hammer": "spectral-hammer",
    "spec_wd": "spectral-weight-decay",
}
BLOCK_ORDER = ("v", "q", "k", "out", "up", "down")
"""The matrices of a block as they stand in the file, from the first block to the last."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    file: Annotated[UserPath, tyro.conf.Positional]
    """The published npz file."""
    run_dir: Annotated[UserPath, tyro.conf.Positional]
    """Where to write the run; its checkpoints are numbered as in the file."""
    alphabet: str = ""
    """Characters of the tokens 0, 1, …, which the file does not tell; by default Shakespeare's if there are 65."""


class _Array:
    """Stands for a NumPy array while unpickling: keeps what was pickled of it, runs nothing."""

    def __init__(self, *_: Any):
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if dtype.name == "O8":
            self.value = content[0] if shape == () else list(content)
        else:
            order = "F" if fortran else "C"
            self.value = np.frombuffer(content, dtype.numpy()).reshape(shape, order=order)


class _Dtype:
    """Stands for a NumPy dtype: its name, and its byte order."""

    def __init__(self, name: str, *_: Any):
        self.name = name
        self._order = "|"

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    def numpy(self) -> np.dtype:
        if self.name not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
            raise UserError(f"it holds an array of type {self.name!r}: only numbers are admitted")
        return np.dtype(self._order + self.name)


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(reader: Any) -> None:
        reader.containers += 1
        if reader.containers > MOST_CONTAINERS:
            raise UserError(f"it holds more than {MOST_CONTAINERS:,} lists and the like")
        load(reader)

    return counted


CONTAINERS = (
    *(pickle.MARK, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.BYTEARRAY8),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.MEMOIZE, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT),
    *(pickle.REDUCE, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST),
)
"""What makes an object of a few bytes of the file."""
PYTHONS: Any = pickle._Unpickler


class _Reader(PYTHONS):
    """Admits plain containers, numbers, strings and arrays; refuses everything else by name.

    It is the reader that is written in Python. The other one reserves memory for as much as a file says that it holds,
    so that a few bytes can ask for all there is. Here each byte makes a few more, and what makes more is counted.
    """

    containers = 0
    dispatch: ClassVar = {
        code: _counted(load) if bytes([code]) in CONTAINERS else load for code, load in PYTHONS.dispatch.items()
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _Array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else _Dtype
        raise UserError(f"it holds a {module}.{name}: only containers, numbers, strings and arrays are admitted")


def read_objects(path: Path) -> dict[str, Any]:
    """The members of a published npz file. Raises UserError if it is none, is damaged, or holds what may not be."""
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            size = sum(member.file_size for member in members)
            if size > LARGEST_FILE:
                raise UserError(f"unpacked it would have {size:,} bytes")
            return {member.filename.removesuffix(".npy"): _read_member(file, member) for member in members}
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except UserError as error:
        raise UserError(f"{path} is not imported: {error}") from error
    except Exception as error:  # Whatever a broken file makes the readers raise.
        raise UserError(f"{path} is damaged or not a published checkpoint ({first_line(error)})") from error


def _read_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    stream = io.BytesIO(file.read(member))  # This checks the CRC.
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    _, _, dtype = read_header(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    if member.file_size > LARGEST_PICKLE:
        raise UserError(f"its {member.filename} would have {member.file_size:,} bytes unpacked")
    value = _plain(_Reader(stream).load(), {})
    if (entries := _entries(value, {})) > member.file_size:  # Each takes a byte at least, unless it stands for many.
        raise UserError(f"its {member.filename} holds the same list many times: {entries:,} entries")
    return value


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """The unpickled value with its arrays. What it holds twice is the same object twice: `known` goes by identity."""
    if not isinstance(value, _Array | dict | list | tuple):
        return value
    if id(value) not in known:
        if isinstance(value, _Array):
            known[id(value)] = _plain(value.value, known)
        elif isinstance(value, dict):
            known[id(value)] = {name: _plain(part, known) for name, part in value.items()}
        else:
            known[id(value)] = [_plain(part, known) for part in value]
    return known[id(value)]


def _entries(value: Any, known: dict[int, int]) -> int:
    """The numbers and strings that a value would have if nothing in it were shared."""
    if isinstance(value, np.ndarray):
        return value.size
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = sum(_entries(part, known) for part in parts)
    return known[id(value)]


def published_recipe(args: Mapping[str, Any], alphabet: str) -> Recipe:
    """The recipe of a published transformer. Raises UserError where its settings have no counterpart."""
    for name, wanted in (("scales_learnable", False), ("layernorm_substitute", "none"), ("use_unembed", False)):
        if args.get(name, wanted) != wanted:
            raise UserError(f"its setting {name} = {args[name]!r} has no counterpart here")
    missing = {"num_heads", "d_embed", "num_blocks", "vocab_size", "project", "w_max"} - set(args)
    if missing:
        raise UserError(f"its settings lack {', '.join(sorted(missing))}: only transformers are imported")
    model = GPTConfig(
        depth=args["num_blocks"],
        width=args["d_embed"],
        heads=args["num_heads"],
        granularity="matrix",
        gelu_divisor=1.1289,
        blocks_mass=float(args["blocks_mass"]),
        zero_init=args["zero_init"],
        softmax_scale=float(args["softmax_scale"]),
        residual_scale=float(args["residual_scale"]),
        final_scale=float(args["final_scale"]),
    )
    optimizer = OptimizerConfig(
        optimizer="muon" if args["optimizer"] == "muon" else "adamw",
        lr=float(args["lr"]),
        beta1=float(args["beta1"]),
        beta2=float(args["beta2"]),
        weight_decay=float(args["wd"]),
        schedule="constant" if args["schedule"] == "none" else args["schedule"],
        embed_inflation=float(args["max_embed_inflation_factor"]),
    )
    constraint = ConstraintConfig(
        _constraint_name(args["project"]), sigma_max=float(args["w_max"]), spectral_wd=float(args["spectral_wd"])
    )
    data = TextConfig(data="shakespeare", alphabet=alphabet)
    return Recipe("published", model, data, optimizer, constraint, TrainingConfig(steps=max(args["steps"], 1)))


def _constraint_name(project: Mapping[str, str]) -> ConstraintName:
    name = project["default"]
    if name not in CONSTRAINT_NAMES:
        raise UserError(f"its constraint {name!r} has no counterpart here")
    return CONSTRAINT_NAMES[name]


def published_arrays(stored: Mapping[int, Sequence[Any]], recipe: Recipe) -> dict[str, Float[np.ndarray, "..."]]:
    """The weights of one checkpoint by their names here: blocks stacked, the embedding with tokens in rows."""
    matrices = [np.asarray(stored[index], np.float32) for index in range(len(stored))]
    depth, size = recipe.model.depth, len(BLOCK_ORDER)
    if len(matrices) != 2 + size * depth:
        raise UserError(f"it holds {len(matrices)} matrices where {depth} blocks make {2 + size * depth}")
    arrays = {"embedding": matrices[0].T[:, :, None], "head": matrices[-1]}
    for place, name in enumerate(BLOCK_ORDER):
        arrays[f"blocks.{name}"] = np.stack([matrices[1 + size * block + place] for block in range(depth)])
    return arrays


def import_npz(file: Path, run: Path, alphabet: str = "") -> list[Path]:
    """Writes every checkpoint of a published npz file into a run. Returns their paths, oldest first."""
    objects = read_objects(file)
    try:
        if not isinstance(objects.get("args"), dict):
            raise UserError("it holds no args, the settings that published checkpoints begin with")
        recipe = published_recipe(objects["args"], alphabet or _default_alphabet(objects["args"]["vocab_size"]))
        count = sum(name.startswith("weights_checkpoint_") for name in objects)
        arrays = [published_arrays(objects[f"weights_checkpoint_{index}"], recipe) for index in range(count)]
        if not arrays:
            raise UserError("it holds no weights_checkpoint_0")
        if refusal := Recipe.from_json(recipe.to_json()).model.refusal() or recipe.data.refusal():
            raise UserError(refusal)
        models = [_model(recipe, part) for part in arrays]
    except UserError as error:
        raise UserError(f"{file} is not imported: {error}") from error
    except Exception as error:  # Whatever values of another type make of these lines.
        raise UserError(f"{file} is not laid out as published checkpoints are ({error!r})") from error
    if (run / "recipe.json").exists() or (run / "checkpoints").exists():
        raise UserError(f"{run} already holds a run: choose another directory")
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "recipe.json", json.dumps(recipe.to_json(), indent=2) + "\n")
    return [save_model(run, index, model, recipe) for index, model in enumerate(models)]


def _default_alphabet(size: int) -> str:
    if size == len(SHAKESPEARE):
        return SHAKESPEARE
    placeholders = "".join(map(chr, range(33, 33 + size)))
    print(f"warning: --alphabet is not given, so tokens stand as {placeholders[:5]}…", file=sys.stderr)
    return placeholders


def _model(recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> Any:
    if recipe.data.sizes[0] != arrays["head"].shape[0]:
        raise UserError(f"--alphabet has {recipe.data.sizes[0]} characters, the file {arrays['head'].shape[0]} tokens")
    abstract = recipe.abstract_model()
    for weight in weights(abstract):
        if weight.array.shape != arrays[weight.name].shape:
            shapes = f"{arrays[weight.name].shape} where {weight.array.shape} is expected"
            raise UserError(f"its {weight.name} has the shape {shapes}")
    return map_weights(lambda w: w.with_array(jnp.asarray(arrays[w.name])), abstract)


def _main() -> int:
    line = tyro.cli(CommandLine, description="Imports a published checkpoint of a transformer.")
    paths = import_npz(line.file, line.run_dir, line.alphabet)
    print(f"wrote {len(paths)} checkpoint(s) to {line.run_dir}; next: python -m lipzoo.certify {line.run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
