"""`python -m lipzoo.certify.elementary`: what elementary functions are off by here, on every float32 number.

A bound of rounding has to know how far exp, tanh, erfc, 1/√, sine and cosine are from what they are called after. No
standard says it, so it is measured, against float64 functions of NumPy and SciPy (off by a few 2⁻⁵³): all numbers for
tanh and erfc, all up to 0 for exp (a softmax takes no others), all positive ones for 1/√, all up to 2²⁰ for sine and
cosine (angles of positions). A compiler may contract a function otherwise in another program, so that certificates
count twice what was measured.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import scipy.special
import tyro

from lipzoo.config.ranges import Range
from lipzoo.data.download import cache_dir
from lipzoo.system.files import write_text
from lipzoo.system.progress import waiting
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.functions import backend

TOGETHER = 2**22
"""Numbers that are looked at together."""
LARGEST_ANGLE = 2.0**20
SMALLEST = 2.0**-126
Function = Callable[[np.ndarray], np.ndarray]


class Measured(NamedTuple):
    """A function as it runs and as it is meant, on the numbers of these signs from `first` to `last`."""

    running: Callable[[jax.Array], jax.Array]
    meant: Function
    first: float
    last: float
    signs: tuple[int, ...]
    relative: bool


FUNCTIONS = {
    "exp": Measured(jax.numpy.exp, np.exp, 0.0, np.inf, (-1,), True),
    "tanh": Measured(jax.numpy.tanh, np.tanh, 0.0, np.inf, (1, -1), True),
    "rsqrt": Measured(jax.lax.rsqrt, lambda x: 1 / np.sqrt(x), SMALLEST, np.inf, (1,), True),
    "erfc": Measured(jax.lax.erfc, scipy.special.erfc, 0.0, np.inf, (1, -1), False),
    "cos": Measured(jax.numpy.cos, np.cos, 0.0, LARGEST_ANGLE, (1, -1), False),
    "sin": Measured(jax.numpy.sin, np.sin, 0.0, LARGEST_ANGLE, (1, -1), False),
}
"""1/√ is measured of normal numbers, since others are taken for 0."""


def numbers(measured: Measured, every: int = 1) -> Iterator[np.ndarray]:
    """The float32 numbers that a function is measured on, or one in so many, in arrays of equal size."""
    first, last = (int(np.float32(x).view(np.uint32)) for x in (measured.first, measured.last))
    for sign in measured.signs:
        for start in range(first, last, TOGETHER * every):
            bits = np.minimum(start + every * np.arange(TOGETHER, dtype=np.uint64), last - 1).astype(np.uint32)
            yield bits.view(np.float32) * np.float32(sign)


def error(measured: Measured, every: int = 1, watch: Callable[[], None] = lambda: None) -> float:
    """The largest error on these numbers, relative or absolute, beside what is lost below the smallest number."""
    run, worst = jax.jit(lambda x: measured.running(x)), 0.0  # Anew, whatever was compiled before under other flags.
    for x in numbers(measured, every):
        with np.errstate(all="ignore"):
            meant = measured.meant(x.astype(np.float64))
            off = np.maximum(abs(np.asarray(run(x)).astype(np.float64) - meant) - SMALLEST, 0.0)
            off = off / abs(meant) if measured.relative else off
        worst = max(worst, float(np.nanmax(np.where(meant == 0, 0.0, off))))
        watch()
    return worst + 2.0**-50


def measure(every: int = 1) -> dict[str, float]:
    """The largest error of each function."""
    found = {}
    for name, measured in FUNCTIONS.items():
        with waiting(f"measuring {name}", None) as wait:
            found[name] = error(measured, every, lambda wait=wait: wait.advance(1))
        print(f"{name:6} {found[name]:.3e} = {found[name] * 2**24:.2f} u", flush=True)
    return found


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    every: Annotated[int, Range(1, 2**20)] = 1
    """Take one number in so many. Only what was measured on all is kept."""
    out: Path | None = None
    """Where to add what was found (default: elementary.json in the data cache, where certificates look for it)."""


def _main() -> int:
    line = tyro.cli(CommandLine, prog=program(), description=str(__doc__).split("\n\n")[1])
    print(f"{backend()}; u = 2^-24")
    found = measure(line.every)
    if line.every == 1:
        path = line.out or cache_dir() / "elementary.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**known, backend(): found}, indent=2) + "\n")
        print(f"added to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
