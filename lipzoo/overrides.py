"""Settings of single layers on the command line: LAYER=VALUE, where LAYER may be a pattern."""

import fnmatch
from collections.abc import Sequence

from lipzoo.errors import UserError


def override(pairs: Sequence[str], name: str) -> str | None:
    """The value of the last pair whose pattern matches the name."""
    values = [value for key, _, value in (pair.partition("=") for pair in pairs) if fnmatch.fnmatch(name, key)]
    return values[-1] if values else None


def override_refusal(flag: str, pairs: Sequence[str], names: Sequence[str]) -> str | None:
    """Why these pairs say nothing of layers with these names, or None."""
    for pair in pairs:
        pattern, _, value = pair.partition("=")
        if not value:
            return f"{flag} takes LAYER=VALUE, got {pair!r}"
        if not fnmatch.filter(names, pattern):
            return f"{flag}: no layer is called {pattern!r}; the layers are {', '.join(names)}"
    return None


def number(text: str, flag: str) -> float:
    """A value as a number. Raises UserError, naming the flag, if it is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number") from None
