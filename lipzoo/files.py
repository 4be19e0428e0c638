"""Paths that users name, and writing files so that a kill never leaves half of one."""

from pathlib import Path

from lipzoo.errors import UserError


def expanded(path: str | Path) -> Path:
    """A path without `~`. Raises UserError if there is no such home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"there is no home directory to take for the ~ of {path}: write the path out") from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
