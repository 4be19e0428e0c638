"""What every command has in common: its streams, its signals, and the sentence in which it ends.

Nothing that a terminal, a pipe or a user does to the output of a command may end it in a traceback.
"""

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

from rich.console import Console
from tyro.constructors import PrimitiveConstructorSpec

from lipzoo.system.errors import Interrupted, UserError
from lipzoo.system.files import expanded

T = TypeVar("T")
NARROWEST = 20
"""Columns of a terminal, at the least."""
ABANDONED = "called off"
"""The name of a thread that nobody waits for any more."""
SPELLED = {
    **{"≤": "<=", "≥": ">=", "‖": "||", "→": ">", "×": "x", "…": ".", "–": "-", "’": "'", "′": "'"},
    **{"ℓ": "l", "₂": "2", "½": "1/2", "√": "sqrt ", "∞": "inf", "Σ": "sum "},
    **{"α": "alpha", "β": "beta", "δ": "delta", "λ": "lambda", "ρ": "rho", "σ": "sigma", "τ": "tau"},
}
"""How signs are written where the encoding of the output lacks them; all others become question marks."""


def _user_path(parts: list[str]) -> Path:
    (text,) = parts
    if not text:  # As a path it would be the current directory.
        raise UserError("a path is empty: name one, or leave its flag out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the path {text!r} is not UTF-8, as the storage of checkpoints needs it: rename it") from None
    return expanded(text)


UserPath = Annotated[
    Path,
    PrimitiveConstructorSpec(1, "PATH", _user_path, lambda value: isinstance(value, Path), lambda path: [str(path)]),
]
"""A path on a command line."""


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLED.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("lipzoo.spell", _spell)


class _Console(Console):
    """A console that leaves a reader who has gone to `guarded`; rich itself would exit with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(**options: Any) -> Console:
    """A console that prints text as it is: what users name may hold brackets and colons, which rich gives a meaning."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) < NARROWEST:  # In no columns rich prints nothing at all.
        options["width"] = NARROWEST
    return _Console(markup=False, emoji=False, highlight=False, **options)


def guarded(command: Callable[[], int]) -> int:
    """Runs a command and returns its status.

    A user's mistake, a full disk or a lack of memory ends in one sentence on stderr and status 2, a signal n in
    128 + n; a reader of the output that has gone (`… | head`) ends it silently, as SIGPIPE would.
    """
    _prepare_streams()
    with _signals_raised():
        status = _attempt(command)
    try:
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        status = status or _told(error)
    if any(thread.name == ABANDONED for thread in threading.enumerate()):
        os._exit(status)  # Python would wait for it.
    return status


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
            _discard(stream)
        return 128 + 13  # SIGPIPE, which Windows does not name.
    place = error.filename or "the output"
    return _fail(f"{error.strerror}: {place}" if error.strerror else str(error))


def _fail(message: str, status: int = 2) -> int:
    line = message.replace("\n", "\\n")  # As names of files may hold it.
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)
    return status


def _prepare_streams() -> None:
    """Streams that exist, and that write every character in some way."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed by the shell (`>&-`).
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="lipzoo.spell")


def _discard(stream: Any) -> None:
    """What is written to a stream goes nowhere from now on, and so does what waits in it for Python to end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Lasting:
    """A stream whose reader may go: the rest is then discarded."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            _discard(self._stream)


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Inside, work goes on when what it prints can no longer be read or written: `… | head`, a log on a full disk."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


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


def _signals_raised() -> contextlib.AbstractContextManager[None]:
    """SIGTERM is raised as Ctrl-C is, so that what is half done is cleared away."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("interrupted", number)

    return handling({signal.SIGTERM: interrupt})
