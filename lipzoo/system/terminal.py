"""What every command has in common: its streams, its signals, and the sentence in which it ends.

Nothing that a terminal, a pipe or a user does to the output of a command may end it in a traceback.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from lipzoo.system.compiled import keep_compiled
from lipzoo.system.errors import Interrupted, UserError
from lipzoo.system.signals import ABANDONED, signals_raised
from lipzoo.system.streams import discard, prepare_streams


def guarded(command: Callable[[], int]) -> int:
    """Runs a command and returns its status.

    A user's mistake, a full disk or a lack of memory ends in one sentence on stderr and status 2, a signal n in
    128 + n; a reader of the output that has gone (`… | head`) ends it silently, as SIGPIPE would.
    """
    prepare_streams()
    keep_compiled()
    with signals_raised():
        status = _attempt(command)
    try:
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        status = status or _told(error)
    if any(thread.name == ABANDONED for thread in threading.enumerate()):
        os._exit(status)  # Python would wait for it.
    return status


STARTED_AS: list[str] = []
"""How a program was started that is part of another."""


def program() -> str:
    """How this program can be started again, for its help."""
    if STARTED_AS:
        return STARTED_AS[-1]
    name = Path(sys.argv[0]).name
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec and name.endswith(".py") else name


def _attempt(command: Callable[[], int]) -> int:
    try:
        return command()
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        return _told(error)
    except Interrupted as error:
        return _fail(str(error), 128 + error.number)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except SystemExit as end:  # The parser's: after --help, or a mistake that it has told.
        if not isinstance(end.code, int):
            raise
        return end.code
    except Exception as error:
        if _lacks_memory(error):
            return _fail("there is not enough memory: choose a smaller --batch-size or model, or raise --accum-steps")
        if "Key backend" in str(error):
            name = os.environ.get("MPLBACKEND", "")
            return _fail(f"matplotlib has no backend MPLBACKEND={name}: unset it, or name another, such as agg")
        if platforms := _missing_platforms():
            return _fail(f"jax finds no devices for JAX_PLATFORMS={platforms}: unset it, or name others, such as cpu")
        raise


def _missing_platforms() -> str:
    """The kinds of devices asked for, if jax cannot use them; asked only when something has failed."""
    import jax  # Most mistakes are told without it.

    try:
        jax.devices()
    except Exception:
        return os.environ.get("JAX_PLATFORMS", "")
    return ""


def _lacks_memory(error: Exception) -> bool:
    """NumPy and Python raise MemoryError; XLA has a word in a general error."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _told(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        for stream in (sys.stdout, sys.stderr):
            discard(stream)
        return 128 + 13  # SIGPIPE, which Windows does not name.
    place = error.filename or "the output"
    return _fail(f"{error.strerror}: {place}" if error.strerror else str(error))


def _fail(message: str, status: int = 2) -> int:
    line = message.replace("\n", "\\n")  # As names of files may hold it.
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)
    return status
