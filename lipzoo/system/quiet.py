"""Keeps the storage layers from telling, around what they raise, what no user can use."""

import logging
import sys
import warnings
from typing import Any

LEFT_BEHIND = ("_read_array_index_and_device_put", "BaseEventLoop.__del__")
"""What Python tells of that nobody waits for any more, whenever it is collected."""


def hush() -> None:
    """Silences what Orbax logs, which is of every file, and the threads that it leaves behind when it fails.

    The first part that cannot be read or written ends its event loop. The threads of the other parts then find it
    closed, which Python tells by one traceback each, and what was to be written next is never begun.
    """
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:  # What it is has a name for type checkers alone.
        closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
        if not closed and not any(name in repr(unraisable.object) for name in LEFT_BEHIND):
            before(unraisable)

    sys.unraisablehook = hook
