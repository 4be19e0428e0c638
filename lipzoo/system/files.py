"""Paths that users name, and files: a kill never leaves half of one, and nothing that lies in one can make reading it
hang or take all memory."""

import atexit
import functools
import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

from lipzoo.system.errors import UserError

LARGEST_JSON = 1 << 25
"""Bytes beyond which a JSON file is not read: 32 MB, a thousand times what is written here."""
DEEPEST_JSON = 100
"""Brackets within brackets beyond which JSON is not read: Python's reader recurses."""
SPECIAL = re.compile(r"[*?\[\]\\]|/\.\./")
"""What patterns give a meaning, and what the storage layer resolves in other ways than the system."""
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def expanded(path: str | Path) -> Path:
    """A path without `~`. Raises UserError if there is no such home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"there is no home directory to take for the ~ of {path}: write the path out") from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` whole or not at all. Processes that write the same file do not disturb each other."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_regular(path: Path) -> int:
    """The size of a file, which has to be a plain one that can be opened. Raises ValueError or OSError."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # A FIFO would wait for a writer for ever, and a device has no end.
        raise ValueError(f"{path.name} is no plain file")
    path.open("rb").close()
    return found.st_size


def read_text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The text of a plain file of at most so many bytes. Raises ValueError or OSError."""
    if (size := check_regular(path)) > largest:
        raise ValueError(f"{path.name} has {size:,} bytes, more than the {largest:,} that are read")
    return path.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError if it is none or nested too deep."""
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > DEEPEST_JSON:
            raise ValueError(f"its brackets are nested more than {DEEPEST_JSON} deep")
    return json.loads(text)


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises ValueError or OSError."""
    return parse_json(read_text(path))


def plain(path: Path) -> Path:
    """The absolute path, or a link to it where it holds something with a meaning in patterns.

    The storage layer finds the parts of what it has written by patterns, and so it does not find them below a folder
    that is called `a[b]`.
    """
    path = path.absolute()
    return _link(path) if SPECIAL.search(str(path)) else path


@functools.cache
def _link(path: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lipzoo-")).absolute()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if SPECIAL.search(str(folder)):
        raise UserError(f"{path} holds one of * ? [ ] \\, and so does the temporary folder: change one of them")
    link = folder / "link"
    link.symlink_to(path)
    return link
