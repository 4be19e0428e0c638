"""Writing files so that a kill never leaves half of one."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
