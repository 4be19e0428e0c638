"""Signals, and calls that one of them may call off."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from lipzoo.system.errors import Interrupted

T = TypeVar("T")
ABANDONED = "called off"
"""The name of a thread that nobody waits for any more."""


def abandonable(work: Callable[[], T], called_off: Callable[[], bool]) -> T | None:
    """What `work` returns, or None once it is called off.

    For long calls that do not come back to Python, which handles signals in its main thread alone: they run in another
    one. What was called off is not ended: it goes on until it is done or `guarded` leaves.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not called_off():
        thread.join(0.05)
    if failure:
        raise failure[0]
    if result:
        return result[0]
    thread.name = ABANDONED
    return None


def in_main_thread() -> bool:
    """Whether signals can be handled here: Python admits that in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handling(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Inside, these functions handle these signals; in a thread that is not the main one, nothing changes."""
    previous = {n: signal.signal(n, handler) for n, handler in handlers.items()} if in_main_thread() else {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def signals_raised() -> contextlib.AbstractContextManager[None]:
    """SIGTERM is raised as Ctrl-C is, so that what is half done is cleared away."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("interrupted", number)

    return handling({signal.SIGTERM: interrupt})
