"""Certified radii: how far each input may move before its class can change."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from lipzoo.certify.measured import ExactNorms
from lipzoo.certify.tighten import mean_log_pair, tightest
from lipzoo.data import Split
from lipzoo.evaluate.rounding import Rounding
from lipzoo.models import AbstractModule
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Vector

TOGETHER = 2048
"""Images whose logits are computed at once."""
REACH = 2.0
"""The RMS norm of inputs up to which pair constants hold; images have at most 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Radii:
    """What is certified of each image, in the order of its split.

    **Attributes:**

    - `label`, `prediction`: its class, and that of its largest logit.
    - `margin`: by how much that logit is above all others.
    - `radius`: no input within this ℓ₂ distance (of pixels in [0, 1]) has another largest logit, computed exactly.
    - `running`: the same of the network as it runs, rounding included; None where that is not covered.
    """

    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    margin: Float[np.ndarray, " n"]
    radius: Float[np.ndarray, " n"]
    running: Float[np.ndarray, " n"] | None = None

    @property
    def correct(self) -> np.ndarray:
        """Which images are classified as they are labelled."""
        return self.label == self.prediction

    def certified_accuracy(self, epsilons: Sequence[float]) -> list[float]:
        """The fraction that is correct, and stays so for every change of size ε, computed exactly."""
        return [float((self.correct & (self.radius > epsilon)).mean()) for epsilon in epsilons]

    def running_accuracy(self, epsilons: Sequence[float]) -> list[float] | None:
        """The same of the network as it runs."""
        if self.running is None:
            return None
        return [float((self.correct & (self.running > epsilon)).mean()) for epsilon in epsilons]

    def save(self, path: Path, local: Float[np.ndarray, " first"] | None = None) -> None:
        """Writes all as a NumPy archive, with the image's index; `local` radii are known of the first images."""
        wide = np.full(len(self.label), np.nan)
        wide[: 0 if local is None else len(local)] = [] if local is None else local
        values = dataclasses.asdict(self)
        running = values.pop("running")
        values["running_radius"] = np.full(len(wide), np.nan) if running is None else running
        with path.open("wb") as file:
            np.savez_compressed(file, index=np.arange(len(self.label)), local_radius=wide, **values)


def pair_constants(
    model: AbstractModule, tighten: int = 0, norms: ExactNorms | None = None
) -> Float[np.ndarray, "classes classes"]:
    """Dⱼₖ with |Δzⱼ - Δzₖ| ≤ Dⱼₖ‖Δx‖₂, z the logits and x one vector: in ℓ₂, rounded up.

    They are read off ellipsoids (`lipzoo.theory.ellipsoid`), of which up to `tighten` steps of a search make one small;
    where there is none, they are √2·L, since no difference of two entries changes by more than √2 times their norm.
    They hold for all inputs of RMS norm up to `REACH`: so for what lies within √n of an image, whose norm is at most 1.

    **Raises:** ValueError if the model takes no vector.
    """
    space = model.takes
    if not isinstance(space, Vector):
        raise ValueError(f"certified radii are of classifiers of one vector, and this takes {space}")
    model, start = jax.tree.map(np.asarray, model), Bound.start(space, REACH)
    exact = ExactNorms() if norms is None else norms
    image = model.bound(start, exact).vector(type(model).__name__)
    classes = image.space.size  # pyright: ignore[reportAttributeAccessIssue]
    whole = float(image.lipschitz) * math.sqrt(2 * classes / space.size) * (1 + 2.0**-50)
    found = [ellipsoid.pairs() for ellipsoid, _ in tightest(model, start, exact, tighten, mean_log_pair)]
    return np.minimum.reduce([np.where(np.eye(classes, dtype=bool), 0.0, whole), *found])


def certified_radii(
    logits: Float[np.ndarray, "n classes"],
    pairs: Float[np.ndarray, "classes classes"],
    limit: float,
    off: Float[np.ndarray, "n 1"] | float = 0.0,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(prediction, margin, radius) from logits: the class y changes to j only where zⱼ - z_y has moved by its margin,
    so not within min_j (z_y - zⱼ)/D_yj, which is rounded down, and cut off at `limit`, up to where D is valid.

    Where something is `off` by so much in all differences of two logits, margins are smaller by that.
    """
    z = np.asarray(logits, np.float64)
    prediction = z.argmax(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = z[np.arange(len(z)), prediction][:, None] - z - off
        margins[np.arange(len(z)), prediction] = math.inf
        radii = np.where(margins > 0, margins / pairs[prediction], 0.0)  # A pair of equal rows never changes.
    radius = np.minimum(radii.min(1), limit) * (1 - 2.0**-50)
    return prediction.astype(np.int32), margins.min(1), np.where(np.isfinite(z).all(1), radius, 0.0)


def radii_of(
    model: AbstractModule,
    split: Split,
    white: int,
    pairs: Float[np.ndarray, "classes classes"],
    watch: Callable[[int, int], None] = lambda done, count: None,
    rounding: Rounding | None = None,
) -> Radii:
    """The radii of all images of a split, in batches.

    With `rounding`, of the network as it runs, too; without, logits as they run are taken to be exact.
    """
    parts, limit = [], (REACH - 1) * math.sqrt(split.input.shape[1])
    for start in range(0, len(split.label), TOGETHER):
        pixels = as_input(split.input[start : start + TOGETHER], white)
        if rounding is None:
            parts.append(certified_radii(np.asarray(_logits(model, pixels)), pairs, limit))
        else:
            parts.append(_running(rounding, pixels, pairs, limit))
        watch(min(start + TOGETHER, len(split.label)), len(split.label))
    prediction, margin, *radii = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Radii(split.label, prediction, margin, *radii)


def _running(
    rounding: Rounding, pixels: Float[np.ndarray, "n size"], pairs: Float[np.ndarray, "classes classes"], limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(prediction as it runs, margin, radius computed exactly, radius of what runs).

    Let the margin of y over j in exact arithmetic be m at x. At no x' within ε is it below m - D_yjε, and that of what
    runs not below m - D_yjε - e, e its deviation for inputs as large as x' can be. The margin itself is known but for
    the roundings of float64.
    """
    z, slack = rounding.exact(pixels)
    prediction, margin, radius = certified_radii(z, pairs, limit, slack)
    sizes = (np.linalg.norm(pixels.astype(np.float64), axis=1) + radius) / math.sqrt(pixels.shape[1]) * (1 + 2.0**-40)
    off = slack + np.array([rounding.off(float(size)) for size in sizes])[:, None]
    running = certified_radii(z, pairs, limit, off)[2]
    ran = rounding.logits(pixels).argmax(1).astype(np.int32)
    same = ran == prediction
    return ran, margin, np.where(same, radius, 0.0), np.where(same, running, 0.0)


def as_input(pixels: np.ndarray, white: int) -> Float[np.ndarray, "*batch pixels"]:
    """Pixel values as models see them: in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(white)


@jax.jit
def _logits(model: AbstractModule, pixels: Float[Array, "n pixels"]) -> Float[Array, "n classes"]:
    return jax.vmap(model)(pixels)
