"""Paths on command lines."""

from pathlib import Path
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from lipzoo.system.errors import UserError
from lipzoo.system.files import expanded


def _user_path(parts: list[str]) -> Path:
    (text,) = parts
    if not text:  # As a path it would be the current directory.
        raise UserError("a path is empty: name one, or leave its flag out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the path {text!r} is not UTF-8, as the storage of checkpoints needs it: rename it") from None
    return expanded(text)


UserPath = Annotated[
    Path,
    PrimitiveConstructorSpec(1, "PATH", _user_path, lambda value: isinstance(value, Path), lambda path: [str(path)]),
]
"""A path on a command line."""
