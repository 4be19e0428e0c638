"""One weight in a certificate."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A weight, its cap and its norm."""

    name: str
    shape: tuple[int, ...]
    cap: float
    norm: float
    _share: Callable[[], float] = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def share(self) -> float:
        """The part of log L that the bound would lose if the norm were 1. It takes another bound of the whole model, so
        it is computed for who looks at it alone."""
        return self._share()

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "shape": self.shape, "cap": self.cap, "norm": self.norm, "share": self.share}
