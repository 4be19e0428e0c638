"""Trained models that come with the library: files of `lipzoo export`, called `zoo:NAME`."""

from pathlib import Path

from lipzoo.system.errors import UserError
from lipzoo.train.exported import SUFFIX

FOLDER = Path(__file__).parents[1] / "zoo"
PREFIX = "zoo:"


def entries() -> dict[str, Path]:
    """The files, by their names."""
    return {path.name.removesuffix(SUFFIX): path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def located(place: str | Path) -> Path:
    """A path, or the file that a `zoo:NAME` stands for. Raises UserError if there is none."""
    if not str(place).startswith(PREFIX):
        return Path(place)
    name, known = str(place).removeprefix(PREFIX), entries()
    if name not in known:
        raise UserError(f"there is no {PREFIX}{name}; choose from {', '.join(PREFIX + entry for entry in known)}")
    return known[name]
