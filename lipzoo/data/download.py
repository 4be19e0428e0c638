"""The data cache, and downloads into it that are verified by sha256."""

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from rich.progress import DownloadColumn, TransferSpeedColumn

from lipzoo.system.compiled import data_dir
from lipzoo.system.errors import UserError
from lipzoo.system.progress import waiting

POINTER_BYTES = 1024
"""The most that a Git-LFS pointer has."""


def cache_dir() -> Path:
    """`$LIPZOO_DATA_DIR`, by default ~/.cache/lipzoo. Raises UserError if there is no home directory for it."""
    try:
        return data_dir()
    except UserError as error:
        place = os.environ.get("LIPZOO_DATA_DIR") or "~/.cache/lipzoo"
        remedy = "set LIPZOO_DATA_DIR to a folder without ~"
        raise UserError(f"data are to lie in {place}, but there is no such home directory: {remedy}") from error


def fetch(url: str, path: Path, sha256: str) -> bytes:
    """The content of a small file of the cache, downloaded first if it is not there.

    **Raises:** UserError as `download`, or if the file in the cache has another sha256.
    """
    if not path.is_file():
        download(url, path, sha256)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is damaged (its sha256 is not {sha256}): delete it to download it again")
    return content


def download(url: str, path: Path, sha256: str) -> Path:
    """Fetches `url` to `path` with a progress bar; the file appears there only when its sha256 is right.

    **Raises:** UserError without a network, or if the checksum is wrong (the file is then discarded).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent} ({error.strerror}): set LIPZOO_DATA_DIR") from error
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # Other processes may be at the same file.
    try:
        with _network(url, path), urlopen(url, timeout=30) as response, part.open("wb") as file:
            length = response.headers.get("Content-Length") or ""
            digest = _copy(response, file, int(length) if length.isdecimal() else None, path.name)
        if digest != sha256:
            raise UserError(
                f"{url} has sha256 {digest} instead of {sha256}: the download is damaged or the source has changed; "
                "try again later"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def lfs_sha256(url: str, path: Path) -> str:
    """The sha256 that the Git-LFS pointer at `url` states for the file that is to lie at `path`.

    It comes from the same server as the file: it tells a damaged download, not a source that has changed.

    **Raises:** UserError without a network, or if there is no such pointer.
    """
    with _network(url, path), urlopen(url, timeout=30) as response:
        pointer = response.read(POINTER_BYTES)
    form = rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize [0-9]+\n?"
    match = re.fullmatch(form, pointer)
    if not match:
        raise UserError(f"{url} is not a Git-LFS pointer: the source has changed; put {path.name} into {path.parent}")
    return match[1].decode()


@contextlib.contextmanager
def _network(url: str, path: Path) -> Iterator[None]:
    """What a network raises when it fails is of many types; to the user it is one mishap."""
    try:
        yield
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        if isinstance(error, HTTPError):  # It is also the server's answer, with an open connection.
            error.close()
        raise UserError(
            f"could not download {path.name} from {url} ({error}): connect to a network, put the data into "
            f"{path.parent} (set LIPZOO_DATA_DIR to change it), or run the embedded recipe, recipes.digits_mlp"
        ) from error


def _copy(source: BinaryIO | HTTPResponse, target: BinaryIO, total: int | None, name: str) -> str:
    """Copies with a progress bar; returns the sha256 of what went by."""
    digest = hashlib.sha256()
    with waiting(f"downloading {name}", total, columns=(DownloadColumn(), TransferSpeedColumn())) as wait:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
            wait.advance(len(chunk))
    return digest.hexdigest()
