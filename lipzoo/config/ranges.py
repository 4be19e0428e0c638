"""Where the number of a field may lie: declared on the field, and rendered in help and refusals alike."""

import dataclasses
import math
from typing import Annotated, Any, get_args

Number = float | int


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, ends included but for an end that is `open`.

    **Attributes:**

    - `why`: what a refusal adds where a number is above.
    """

    low: Number = -math.inf
    high: Number = math.inf
    open_low: bool = False
    open_high: bool = False
    why: str = ""

    def __contains__(self, value: Number) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if not (self.open_low or self.open_high) and math.isfinite(self.low) and math.isfinite(self.high):
            return f"between {shown(self.low)} and {shown(self.high)}"
        above = f"above {shown(self.low)}" if self.low else "positive"
        low = above if self.open_low else f"at least {shown(self.low)}"
        high = f"{'below' if self.open_high else 'at most'} {shown(self.high)}"
        return " and ".join(end for end, value in ((low, self.low), (high, self.high)) if math.isfinite(value))

    def refusal(self, name: str, value: Number) -> str | None:
        """Why this value of the flag `name` is refused, or None."""
        if value in self:
            return None
        why = f", {self.why}" if self.why and value > self.high else ""
        return f"{name} must {'lie' if str(self).startswith('between') else 'be'} {self}{why}, got {shown(value)}"


Count = Annotated[int, Range(1)]
"""How many there are of what cannot be missing."""
Whole = Annotated[int, Range(0)]
"""How many there are of what can be missing."""
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Part = Annotated[float, Range(0, 1, open_low=True)]
"""A fraction that is not 0."""
Seed = Annotated[int, Range(0, 2**32 - 1)]


def range_of(kind: Any) -> Range | None:
    """The range that is declared on a field of this type."""
    return next((part for part in get_args(kind)[1:] if isinstance(part, Range)), None)


def shown(number: Number) -> str:
    """A number as in a sentence."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.15g}"
