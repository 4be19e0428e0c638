"""What is true of every number of a configuration, in use or not, wherever it comes from."""

import dataclasses
import math
import typing
from typing import Annotated, Any, TypeVar

from tyro.conf import arg

Config = TypeVar("Config")
LARGEST = 2**31 - 1
"""Steps, sizes and counts become int32 on devices."""
MAGNITUDES = (2.0**-100, 2.0**100)
"""Numbers that are not 0 lie between these: products and quotients of two or so stay inside float32."""
UNSIGNED = ("seed",)
"""Whole numbers that may be twice as large."""
PREFIXED = ("ebc", "controller", "guard", "surrogate")
"""Parts of a recipe whose flags begin with their name."""


def options(config: type[Config]) -> type[Config]:
    """Flags named after the fields of a dataclass alone, whichever part of a recipe it is; help groups them by part."""
    for name, kind in config.__annotations__.items():
        config.__annotations__[name] = Annotated[kind, arg(prefix_name=False)]
    return config


def flag(name: str, prefix: str = "") -> str:
    """How a field is written on the command line."""
    return f"--{prefix}{name}".replace("_", "-")


def choice_refusal(config: Any) -> str | None:
    """The first field of a configuration that is none of its choices, or None. Command lines admit no other."""
    for name, kind in typing.get_type_hints(type(config)).items():
        value, choices = getattr(config, name), typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal and value not in choices:
            return f"{flag(name)} must be one of {', '.join(map(str, choices))}, got {value!r:.40}"
    return None


def number_refusal(config: Any, prefix: str = "") -> str | None:
    """The first number of a configuration that nothing can be computed with, or None: NaN, infinite, beyond int32, or
    of a size that float32 has no room for.

    Looks at all fields of the dataclass and of those inside it, whether they are in use or not: what is stored must be
    readable as JSON, and a number that does nothing today does something when its part is turned on.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            refusal = number_refusal(value, f"{prefix}{field.name}." if field.name in PREFIXED else prefix)
        else:
            refusal = _refusal(flag(field.name, prefix), value, 2**32 - 1 if field.name in UNSIGNED else LARGEST)
        if refusal:
            return refusal
    return None


def _refusal(name: str, value: Any, largest: int) -> str | None:
    if isinstance(value, tuple):
        return next((r for part in value if (r := _refusal(name, part, largest))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} must be finite, got {value}"
    low, high = MAGNITUDES
    if isinstance(value, float) and value and not low <= abs(value) <= high:
        return f"{name} must be 0 or lie between {low:.3g} and {high:.3g}, got {value:g}"
    if isinstance(value, int) and abs(value) > largest:
        return f"{name} must be at most {largest:,}, got {value:,}"
    return None
