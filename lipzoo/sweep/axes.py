"""Grids and samples: which settings the values of several fields make."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lipzoo.config.fields import MAGNITUDES, flag
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.settings import Field, Setting, field_named, typed
from lipzoo.system.errors import UserError

SPACINGS = ("log", "lin")
SamplerName = Literal["sobol", "random"]
MOST = 1_000_000
"""Settings of a grid, at most."""


@dataclasses.dataclass(frozen=True)
class Span:
    """The numbers from `low` to `high`, spaced evenly or by factors: `lin:LOW:HIGH[:COUNT]`, `log:LOW:HIGH[:COUNT]`.

    Without a count it can be sampled from alone.
    """

    spacing: str
    low: float
    high: float
    count: int

    @staticmethod
    def of(name: str, text: str) -> "Span":
        """The span that a word says. Raises UserError if it says none."""
        spacing, *words = text.split(":")
        usage = f"{flag(name)}: {text!r} must be {spacing}:LOW:HIGH:COUNT, or without COUNT beside --samples"
        try:
            low, high, count = float(words[0]), float(words[1]), int(words[2]) if words[2:] else 0
        except (ValueError, IndexError):
            raise UserError(usage) from None
        if len(words) > 3 or not -math.inf < low < high < math.inf or count < 0 or count > MOST or count == 1:
            raise UserError(f"{usage}, with LOW below HIGH and a COUNT of at least 2")
        if max(abs(low), abs(high)) > MAGNITUDES[1] or 0 < abs(low) < MAGNITUDES[0]:
            raise UserError(f"{flag(name)}: {text!r} goes beyond what float32 holds")
        if spacing == "log" and low <= 0:
            raise UserError(f"{flag(name)}: {text!r} goes by factors: LOW must be above 0")
        return Span(spacing, low, high, count)

    def at(self, fraction: float) -> float:
        """The number at a fraction of the way, with six digits."""
        if self.spacing == "lin":
            return float(f"{self.low + fraction * (self.high - self.low):.6g}")
        return float(f"{self.low * (self.high / self.low) ** fraction:.6g}")


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of one field: a list, in which spans with a count are spelled out, or one span to sample from."""

    name: str
    field: Field
    values: tuple[Any, ...]
    span: Span | None = None

    @staticmethod
    def of(recipe: Recipe, name: str, words: Sequence[Any]) -> "Axis":
        """The axis of a flag with its words, or of a key with its values. Raises UserError if they say nothing."""
        field = field_named(recipe, name)
        name = name.replace("-", "_")
        spans = [_span(name, field, word) for word in words]
        if not words:
            raise UserError(f"{flag(name)} needs at least one value")
        if spans[0] and not spans[0].count:
            if len(words) > 1:
                raise UserError(f"{flag(name)}: a range without a count stands alone")
            return Axis(name, field, (), spans[0])
        values: list[Any] = []
        for word, span in zip(words, spans, strict=True):
            if span and not span.count:
                raise UserError(f"{flag(name)}: a range without a count stands alone")
            values += _spelled(name, field, span) if span else [typed(name, field, word)]
        return Axis(name, field, tuple(dict.fromkeys(values)))

    def drawn(self, fraction: float) -> Any:
        """The value at a fraction of the way from the first to the last."""
        if self.span is None:
            return self.values[min(int(fraction * len(self.values)), len(self.values) - 1)]
        return _number(self.field, self.span.at(fraction))


def _span(name: str, field: Field, word: Any) -> Span | None:
    numeric = field.plain in (int, float)
    return Span.of(name, word) if numeric and isinstance(word, str) and word.split(":")[0] in SPACINGS else None


def _spelled(name: str, field: Field, span: Span) -> list[Any]:
    return [_number(field, span.at(index / (span.count - 1))) for index in range(span.count)]


def _number(field: Field, value: float) -> Any:
    return round(value) if field.plain is int else value


def split_words(argv: Sequence[str], own: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words of a sweep's own flags, and those of all others by name: `--lr 0.1 0.2`, `--lr=0.1`, `--no-seal`.

    **Raises:** UserError if a flag comes twice, or a word belongs to none.
    """
    kept: list[str] = []
    others: dict[str, list[str]] = {}
    target = kept
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.removeprefix("--").partition("=")
            if name.replace("_", "-") in own:
                target = kept
                kept.append(word)
                continue
            if name in others:
                raise UserError(f"--{name} comes twice: give it all its values at once")
            target = others[name] = [value] if equals else []
        elif target is kept and not kept:
            raise UserError(f"{word!r} belongs to no flag")
        else:
            target.append(word)
    return kept, others


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words without these flags and what belongs to them."""
    kept, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word.removeprefix("--").partition("=")[0].replace("_", "-") in names
        kept += [] if skipping else [word]
    return kept


def axes_of(recipe: Recipe, words: Mapping[str, Sequence[Any]]) -> list[Axis]:
    """An axis for each flag; `--seal`, `--no-seal` and `--ebc.no-enable` are those of one value."""
    found: dict[str, Axis] = {}
    for name, values in words.items():
        axis = Axis.of(recipe, *_as_values(recipe, name, values))
        if axis.name in found:
            raise UserError(f"{flag(axis.name)} comes twice: give it all its values at once")
        found[axis.name] = axis
    return list(found.values())


def _as_values(recipe: Recipe, name: str, values: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """A flag without a value as one that has it."""
    if values:
        return name, values
    *parts, last = name.replace("_", "-").split(".")
    plain = ".".join([*parts, last.removeprefix("no-")])
    if field_named(recipe, plain).plain is not bool:
        raise UserError(f"{flag(name)} needs at least one value")
    return plain, ["false" if last.startswith("no-") else "true"]


def grid(axes: Sequence[Axis]) -> list[Setting]:
    """Every combination, the last axis changing fastest. Raises UserError where it cannot be listed."""
    for axis in axes:
        if axis.span is not None:
            raise UserError(f"{flag(axis.name)}: a grid needs a COUNT at the end of the range; --samples does not")
    if math.prod(len(axis.values) for axis in axes) > MOST:
        raise UserError(f"the grid has more than {MOST:,} combinations: use --samples")
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def samples(axes: Sequence[Axis], count: int, sampler: SamplerName, seed: int) -> list[Setting]:
    """So many settings, from all axes but the seed, of which every sample has each value.

    A scrambled Sobol sequence fills the space more evenly than independent draws do.
    """
    repeated = [axis for axis in axes if axis.name == "seed"]
    drawn = [axis for axis in axes if axis.name != "seed"]
    points = _points(len(drawn), count, sampler, seed) if drawn else np.zeros((1, 0))
    if any(axis.span for axis in repeated):
        raise UserError("--seed takes single values or a range with a COUNT: each sample is run with all of them")
    chosen = [{axis.name: axis.drawn(float(u)) for axis, u in zip(drawn, point, strict=True)} for point in points]
    return [{**setting, **more} for setting in chosen for more in grid(repeated)]


def _points(dimensions: int, count: int, sampler: SamplerName, seed: int) -> np.ndarray:
    if sampler == "random":
        return np.random.RandomState(seed).rand(count, dimensions)
    from scipy.stats import qmc  # Slow to import.

    sequence = qmc.Sobol(dimensions, seed=seed)  # pyright: ignore[reportCallIssue]  # New ones call it rng, too.
    return sequence.random_base2(math.ceil(math.log2(count)))[:count]
