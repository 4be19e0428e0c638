"""Streams of any encoding, and whose readers may go."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

NARROWEST = 20
"""Columns of a terminal, at the least."""
SPELLED = {
    **{"≤": "<=", "≥": ">=", "‖": "||", "→": ">", "×": "x", "…": ".", "–": "-", "’": "'", "′": "'"},
    **{"ℓ": "l", "₂": "2", "½": "1/2", "√": "sqrt ", "∞": "inf", "Σ": "sum "},
    **{"α": "alpha", "β": "beta", "δ": "delta", "λ": "lambda", "ρ": "rho", "σ": "sigma", "τ": "tau"},
}
"""How signs are written where the encoding of the output lacks them; all others become question marks."""


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


def prepare_streams() -> None:
    """Streams that exist, and that write every character in some way."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed by the shell (`>&-`).
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="lipzoo.spell")


def discard(stream: Any) -> None:
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
            discard(self._stream)


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
