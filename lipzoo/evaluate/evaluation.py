"""What is known of a classifier on its test split, and how it is shown."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Group
from rich.text import Text

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.fields import running_json
from lipzoo.evaluate.attack import Attacked
from lipzoo.evaluate.radii import Radii
from lipzoo.evaluate.tightness import Tightness
from lipzoo.report import page
from lipzoo.report.tables import terminal_table
from lipzoo.system.version import VERSION
from lipzoo.theory.numbers import round_digits
from lipzoo.train.checkpoint import Loaded

SCHEMA = 1
"""The version of evaluation.json (docs/schema.md)."""
SLACK = 1e-5
"""Attacks see a network that runs in float32: of one in float64 what is so much nearer is no alarm."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of a classifier on its test split.

    **Attributes:**

    - `loaded`: the model and where it came from. `certificate`: its global bound.
    - `epsilons`: ℓ₂ distances, of pixels in [0, 1].
    - `radii`: what is certified of each image by global bounds.
    - `local`: radii of the first images by bounds around each of them, of what runs; None where none were asked.
    - `attacked`: what attacks found for the same images; None where no attack was asked for.
    - `tightness`: the largest gains found, beside the bounds.
    """

    loaded: Loaded
    certificate: Certificate
    epsilons: tuple[float, ...]
    radii: Radii
    local: Float[np.ndarray, " first"] | None
    attacked: Attacked | None
    tightness: tuple[Tightness, ...]

    @property
    def count(self) -> int:
        """The first images, which got what takes longer."""
        return next((len(x) for x in (self.local, self.attacked and self.attacked.distance) if x is not None), 0)

    @property
    def clean(self) -> float:
        """Accuracy on the test split."""
        return float(self.radii.correct.mean())

    @property
    def certified(self) -> list[float]:
        """The fraction of the test split that no change of size ε makes wrong, by global bounds."""
        return self.radii.certified_accuracy(self.epsilons)

    @property
    def best(self) -> Float[np.ndarray, " first"]:
        """The largest radii that are known of the first images, as the network runs; 0 where they are misclassified."""
        radius = self._running[: self.count] if self.local is None else self.local
        return np.where(self.radii.correct[: self.count], radius, 0.0)

    def beyond(self, distances: Float[np.ndarray, " first"] | None) -> list[float] | None:
        """For each ε, the fraction of distances above it."""
        return None if distances is None else [float((distances > epsilon).mean()) for epsilon in self.epsilons]

    @property
    def attacked_accuracy(self) -> list[float] | None:
        """The fraction of the first images for which no adversary within ε was found."""
        return self.beyond(None if self.attacked is None else np.asarray(self.attacked.distance))

    def violations(self) -> list[int]:
        """The images that are certified within a distance at which an adversary was found: there must be none."""
        if self.attacked is None:
            return []
        covered = self.certificate.running is not None and self.certificate.running.arithmetic.unit >= 2.0**-24
        slack = 0.0 if covered else SLACK
        return np.flatnonzero(self.attacked.distance < self.best * (1 - slack) - slack).tolist()

    @property
    def _running(self) -> Float[np.ndarray, " n"]:
        """Global radii of what runs, or, where rounding is not covered, of what is meant."""
        return self.radii.radius if self.radii.running is None else self.radii.running

    @property
    def local_gain(self) -> float | None:
        """The median of local over global radii, of images that are classified as they are labelled."""
        radius, right = self._running[: self.count], self.radii.correct[: self.count]
        if self.local is None or not (right & (radius > 0)).any():
            return None
        return float(np.median((self.local / np.maximum(radius, 1e-300))[right & (radius > 0)]))

    def to_json(self) -> dict[str, Any]:
        """A JSON object, laid out as docs/schema.md says."""
        bound, factor = self.certificate.lipschitz, self.certificate.l2_factor
        radius, right = self.radii.radius[self.radii.correct], self.radii.correct[: self.count]
        running = self.certificate.running
        value: dict[str, Any] = {
            "schema": SCHEMA,
            "lipzoo": VERSION,
            "checkpoint": str(self.loaded.path.absolute()),
            "step": self.loaded.step,
            "weights_sha256": self.loaded.sha256,
            "data": self.loaded.recipe.data.data,
            "images": len(self.radii.label),
            "lipschitz_rms": _finite(bound),
            "lipschitz_l2": None if factor is None else _finite(bound * factor),
            "clean_accuracy": self.clean,
            "epsilons_l2": list(self.epsilons),
            "certified_accuracy": self.certified,
            "arithmetic": None if running is None else running_json(running),
            "running_certified_accuracy": self.radii.running_accuracy(self.epsilons),
            "median_certified_radius_l2": float(np.median(radius)) if radius.size else 0.0,
            "first_images": self.count,
            "attacked_accuracy": self.attacked_accuracy,
            "violations": self.violations(),
            "tightness": [dict(row._asdict(), certified=_finite(row.certified)) for row in self.tightness],
        }
        if self.count:
            value["clean_accuracy_of_first"] = float(right.mean())
            value["certified_accuracy_of_first"] = self.beyond(np.where(right, self.radii.radius[: self.count], 0.0))
        if self.local is not None:
            value["local_certified_accuracy_of_first"] = self.beyond(self.best)
            value["median_local_radius_l2"] = float(np.median(self.local[right])) if right.any() else 0.0
            value["median_local_to_global"] = self.local_gain
        if self.attacked is not None:
            value["mean_true_probability"] = self.attacked.probability.mean(0).tolist()
            found = self.attacked.distance[np.isfinite(self.attacked.distance) & (self.attacked.distance > 0)]
            value["median_attack_distance_l2"] = float(np.median(found)) if found.size else None
        return value

    @property
    def columns(self) -> dict[str, list[str]]:
        """The table of accuracies: what stands above each column, and a cell for each ε."""
        value = self.to_json()
        running = self.certificate.running
        named = {
            "certified": "certified_accuracy",
            f"in {running.arithmetic.name}" if running else "": "running_certified_accuracy",
            f"first {self.count:,}": "certified_accuracy_of_first",
            "around": "local_certified_accuracy_of_first",
            "attacked": "attacked_accuracy",
        }
        table = {name: [f"{x:.2%}" for x in value[key]] for name, key in named.items() if value.get(key)}
        if self.attacked is not None:
            table["p(true)"] = [f"{x:.3f}" for x in value["mean_true_probability"]]
        return {"ε (ℓ₂)": [fraction(epsilon) for epsilon in self.epsilons], **table}

    @property
    def tightness_columns(self) -> dict[str, list[str]]:
        """The table of tightness."""
        rows = self.tightness
        ratios = [f"{row.certified / row.found:.2f}" if row.found else "-" for row in rows]
        return {
            "L (RMS → RMS)": [row.name for row in rows],
            "largest gain found": [round_digits(row.found, 4, up=False) for row in rows],
            "certified": [round_digits(row.certified, 4) if math.isfinite(row.certified) else "∞" for row in rows],
            "ratio": ratios,
        }

    def __rich__(self) -> Group:
        title = f"{self.loaded.recipe.name}, step {self.loaded.step}: {self.clean:.2%} clean"
        parts: list[Any] = [terminal_table(self.columns, title)]
        if self.tightness:
            parts.append(terminal_table(self.tightness_columns, "Tightness"))
        return Group(*parts, Text(self.summary, style="dim"))

    def _repr_html_(self) -> str:
        tables = [page.table(self.columns, f"{self.loaded.recipe.name}: {self.clean:.2%} clean")]
        if self.tightness:
            tables.append(page.table(self.tightness_columns, "Tightness"))
        return "".join((*tables, page.note(self.summary)))

    @property
    def summary(self) -> str:
        """What the numbers are about."""
        value = self.to_json()
        bound = round_digits(value["lipschitz_l2"]) if value["lipschitz_l2"] else "unknown"
        told = (
            f"{len(self.radii.label):,} test images. Certified: no change of the pixels (in [0, 1]) of ℓ₂ size ε makes "
            f"the class wrong; median radius {value['median_certified_radius_l2']:.3g}, L (ℓ₂ → ℓ₂) at most {bound}."
        )
        if self.count:
            told += f" Of the first {self.count:,} the other columns tell: certified likewise"
            if self.local is not None:
                gain = (
                    ""
                    if self.local_gain is None
                    else f" ({self.local_gain:.3g} times the global radius, in the median)"
                )
                told += f", certified by bounds around each{gain}"
            told += "." if self.attacked is None else ", and what attacks leave."
        running = self.certificate.running
        if running is None:
            return told + " The rounding of the network's own forward pass is not covered."
        return (
            f"{told} In {running.arithmetic.name}: of the network as it runs, whatever the order of its sums; so are "
            f"bounds around each. Functions are {running.arithmetic.functions.source}."
        )


def fraction(epsilon: float) -> str:
    """36/255, where it is a whole number of those."""
    whole = epsilon * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-6 else f"{epsilon:g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
