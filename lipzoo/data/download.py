"""The data cache, and downloads into it that are verified by sha256."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, cast
from urllib.error import URLError
from urllib.request import urlopen

from rich.progress import wrap_file

from lipzoo.errors import UserError


def cache_dir() -> Path:
    """`$LIPZOO_DATA_DIR`, by default ~/.cache/lipzoo."""
    return Path(os.environ.get("LIPZOO_DATA_DIR", "~/.cache/lipzoo")).expanduser()


def download(url: str, path: Path, sha256: str) -> Path:
    """Fetches `url` to `path` with a progress bar; the file appears there only when its sha256 is right.

    **Raises:** UserError without a network, or if the checksum is wrong (the file is then discarded).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with urlopen(url, timeout=30) as response, part.open("wb") as file:
            digest = _copy(response, file, int(response.headers.get("Content-Length") or 0), path.name)
        if digest != sha256:
            raise UserError(
                f"{url} has sha256 {digest} instead of {sha256}: the download is damaged or the source has changed; "
                "try again later"
            )
        part.replace(path)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"could not download {path.name} from {url} ({error}): connect to a network, put the data under "
            f"{cache_dir()} (set LIPZOO_DATA_DIR to change it), or run the embedded recipe, recipes.digits_mlp"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _copy(source: BinaryIO, target: BinaryIO, total: int, name: str) -> str:
    """Copies with a progress bar; returns the sha256 of what went by."""
    digest = hashlib.sha256()
    with wrap_file(cast(BinaryIO, source), total=total, description=f"Downloading {name}") as reader:
        while chunk := reader.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
