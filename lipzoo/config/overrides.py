"""Settings of single layers on the command line: LAYER=VALUE, where LAYER may be a pattern."""

import fnmatch
import math
from collections.abc import Sequence

from lipzoo.system.errors import UserError


def override(pairs: Sequence[str], name: str) -> str | None:
    """The value of the last pair whose pattern matches the name."""
    values = [value for key, _, value in (pair.partition("=") for pair in pairs) if fnmatch.fnmatchcase(name, key)]
    return values[-1] if values else None


def override_refusal(flag: str, pairs: Sequence[str], names: Sequence[str], *, numeric: bool = False) -> str | None:
    """Why these pairs say nothing of layers with these names, or None.

    **Raises:** UserError if values are to be `numeric`, and one is not a finite number, whether it is in use or not.
    """
    seen = set()
    for pair in pairs:
        pattern, _, value = pair.partition("=")
        if not value:
            return f"{flag} takes LAYER=VALUE, got {pair!r}"
        if pattern in seen:
            return f"{flag} names {pattern!r} more than once: leave one out"
        seen.add(pattern)
        if numeric:
            number(value, flag)
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            return f"{flag}: no layer that it acts on is called {pattern!r}; those are {', '.join(names)}"
    return None


def number(text: str, flag: str) -> float:
    """A value as a number. Raises UserError, naming the flag, if it is none, or not a finite one."""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number") from None
    if not math.isfinite(value):
        raise UserError(f"{flag}: {text} is not finite")
    return value
