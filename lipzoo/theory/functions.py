"""What elementary functions are known to be off by on a backend, and the formats in which networks run."""

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

import jax

from lipzoo.theory.runs import Arithmetic, Functions

UNKNOWN = 64 * 2.0**-24
"""What functions are taken to be off by on a backend on which nobody measured them: vendors promise a few 2⁻²⁴."""
CONTRACTED = 2.0
"""By what a measured error is multiplied, since a compiler may contract a function otherwise in another program."""
Format = Literal["float32", "bfloat16", "tf32", "float8_e4m3fn", "float64"]
FORMATS: tuple[Format, ...] = get_args(Format)
UNITS: dict[Format, tuple[float, float, float, float]] = {
    "float32": (2.0**-24, 0.0, 2.0**-24, 0.0),
    "tf32": (2.0**-24, 2.0**-10, 2.0**-23, 0.0),
    "bfloat16": (2.0**-8, 0.0, 2.0**-23, 2.0**-8),
    "float8_e4m3fn": (2.0**-8, 0.0, 2.0**-23, 2.0**-8),  # Weights alone are held in float8.
    "float64": (2.0**-53, 0.0, 2.0**-53, 0.0),
}
"""Unit roundoffs of what is stored, of factors of products, of sums, and of the input. Tensor cores may cut off what
they do not hold, of factors in tf32 and of sums, instead of rounding it, which errs by twice as much."""


def backend() -> str:
    """What computes here, by name and version."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind}), jax {jax.__version__}"


@functools.cache
def _measured() -> dict[str, dict[str, float]]:
    return json.loads((resources.files("lipzoo.theory") / "elementary.json").read_text())


def functions(cache: Path | None = None) -> Functions:
    """What functions are off by on this backend: twice what was measured, or `UNKNOWN`. `cache` holds more."""
    known = dict(_measured())
    if cache is not None and cache.exists():
        known |= json.loads(cache.read_text())
    name = backend()
    if name not in known:
        return Functions(*[UNKNOWN] * 5, source=f"assumed to be within 64 units, on {name}")
    off = {key: CONTRACTED * value for key, value in known[name].items()}
    angle = max(off["cos"], off["sin"])
    source = f"as measured on all float32 numbers that they can meet, counted twice, on {name}"
    return Functions(off["exp"], off["tanh"], off["rsqrt"], off["erfc"], angle, source)


def arithmetic(name: Format, cache: Path | None = None) -> Arithmetic:
    """A format with what this backend's functions are off by."""
    return Arithmetic(name, *UNITS[name], functions(cache))
