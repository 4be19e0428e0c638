"""Bounds as fields of JSON."""

import math
from collections.abc import Mapping
from typing import Any

from lipzoo.certify.deviation import Running
from lipzoo.theory.bound import Bound


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null stands for it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def bound_json(bound: Bound) -> dict[str, Any]:
    names = ("lipschitz", "log10_lipschitz", "radius", "log10_radius")
    values = {name: getattr(bound, name) for name in names}
    return finite({name: float(value) for name, value in values.items()})


def running_json(running: Running) -> dict[str, Any]:
    a = running.arithmetic
    return finite(
        {
            "format": a.name,
            "deviation_rms": running.deviation,
            "unit_roundoff": a.unit,
            "factor_roundoff": a.factor,
            "sum_roundoff": a.total,
            "functions": a.functions.source,
            "tokens": running.tokens,
        }
    )
