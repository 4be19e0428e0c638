"""What is true of every field of a configuration, in use or not, wherever its value comes from."""

import dataclasses
import functools
import math
import typing
from typing import Annotated, Any, TypeVar

from tyro.conf import arg

from lipzoo.config.ranges import range_of

Config = TypeVar("Config")
LARGEST = 2**31 - 1
"""Steps, sizes and counts become int32 on devices; where more is said to be possible, that holds."""
MAGNITUDES = (2.0**-100, 2.0**100)
"""Numbers that are not 0 lie between these: products and quotients of two or so stay inside float32."""
PREFIXED = ("ebc", "controller", "guard", "surrogate")
"""Parts of a recipe whose flags begin with their name."""


def options(config: type[Config]) -> type[Config]:
    """Flags named after the fields of a dataclass alone, whichever part of a recipe it is; help groups them by part."""
    return _flags(config, prefix=False)


def prefixed_options(config: type[Config]) -> type[Config]:
    """Flags named after the part and the field."""
    return _flags(config, prefix=True)


def _flags(config: type[Config], *, prefix: bool) -> type[Config]:
    for name in {field.name for field in dataclasses.fields(config)} & set(config.__annotations__):  # pyright: ignore
        kind = config.__annotations__[name]
        within = range_of(kind)
        hint = None if within is None else functools.partial("(default: {1}; {0})".format, str(within).replace(",", ""))
        config.__annotations__[name] = Annotated[kind, arg(prefix_name=prefix, help_behavior_hint=hint)]
    return config


def taken(kind: type, config: Any) -> dict[str, Any]:
    """What a dataclass takes of the fields of a configuration, which are called as its own, or as `option` says."""
    names = {field.name: field.metadata.get("option", field.name) for field in dataclasses.fields(kind)}
    return {name: getattr(config, option) for name, option in names.items()}


def flag(name: str, prefix: str = "") -> str:
    """How a field is written on the command line."""
    return f"--{prefix}{name}".replace("_", "-")


def field_refusal(config: Any, prefix: str = "") -> str | None:
    """The first field of a configuration with which nothing can be done, or None: none of its choices, outside its
    range, NaN, infinite, beyond int32, or of a size that float32 has no room for.

    Looks at all fields of the dataclass and of those inside it, whether they are in use or not: what is stored must be
    readable as JSON, and a number that does nothing today does something when its part is turned on.
    """
    kinds = typing.get_type_hints(type(config), include_extras=True)
    for name in (field.name for field in dataclasses.fields(config)):
        value, kind = getattr(config, name), kinds[name]
        if dataclasses.is_dataclass(value):
            refusal = field_refusal(value, f"{prefix}{name}." if name in PREFIXED else prefix)
        else:
            refusal = _refusal(flag(name, prefix), value, kind)
        if refusal:
            return refusal
    return None


def _refusal(name: str, value: Any, kind: Any) -> str | None:
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if typing.get_origin(plain) is typing.Literal and value not in (choices := typing.get_args(plain)):
        return f"{name} must be one of {', '.join(map(str, choices))}, got {value!r:.40}"
    if isinstance(value, tuple):
        item = next(iter(typing.get_args(plain)), Any)
        return next((r for part in value if (r := _refusal(name, part, item))), None)
    within = range_of(kind)
    return _number_refusal(name, value, within.high if within else 0) or (within and within.refusal(name, value))


def _number_refusal(name: str, value: Any, allowed: float | int = 0) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} must be finite, got {value}"
    low, high = MAGNITUDES
    if isinstance(value, float) and value and not low <= abs(value) <= high:
        return f"{name} must be 0 or lie between {low:.3g} and {high:.3g}, got {value:g}"
    largest = allowed if LARGEST < allowed < math.inf else LARGEST
    if isinstance(value, int) and abs(value) > largest:
        return f"{name} must be at most {largest:,}, got {value:,}"
    return None
