"""One process at a time writes to a run."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lipzoo.system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has other locks.
    fcntl = None

LOCK = ".lock"
"""The file of a run that its process holds. It stays behind; the lock goes with the process, however that ends."""
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def held(run: Path, name: str = LOCK) -> Iterator[None]:
    """Holds the lock of a run, or of a part of it.

    **Raises:** UserError if another process does, OSError if the run cannot be written to.

    Where the file system has no locks it warns and goes on.
    """
    descriptor = os.open(run / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, run)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise UserError(f"another process is working in {run}: wait for it to end, or stop it") from error
        reason = f"warning: {run} cannot be locked ({error.strerror}): do not train in it from two processes at once"
        print(reason, file=sys.stderr)
