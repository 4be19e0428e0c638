"""Search along one axis after the other."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Point = TypeVar("Point")
Rate = Callable[[list[Point]], dict[Point, float]]


def ascend(start: Point, axes: Mapping[str, Iterable[Any]], rate: Rate[Point]) -> Point:
    """The best point found when each axis in turn takes the value that `rate` likes most, until none is better.

    Points are frozen dataclasses and axes are their fields. `rate` gives what it has measured of the points that it is
    asked for, each of which it is asked for once; nothing of those that it has no time for.
    """
    known, asked = rate([start]), {start}
    best, last = start, None
    while best != last:
        last = best
        for name, values in axes.items():
            fresh = [point for point in _along(best, name, values) if point not in asked]
            asked |= set(fresh)
            known |= rate(fresh) if fresh else {}
            best = max(known, key=lambda point: known[point], default=best)
    return best


def _along(point: Any, name: str, values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(dataclasses.replace(point, **{name: value}) for value in values))
