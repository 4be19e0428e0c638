"""Published npz files, which hold pickled objects, read without running anything of them."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lipzoo.system.errors import UserError
from lipzoo.system.files import check_regular
from lipzoo.train.reading import first_line

LARGEST_FILE = 1 << 32
"""Unpacked bytes beyond which a file is refused."""
LARGEST_PICKLE = 1 << 28
"""Unpacked bytes beyond which its pickled members are refused: as Python objects they take several times as much."""
MOST_CONTAINERS = 1 << 20
"""Lists and the like in a pickle: each takes a hundred times the one byte that makes it."""


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
