"""A checkpoint evaluated on its test split: clean, certified and attacked accuracy, in files beside the run."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lipzoo.certify.certificate import Certificate
from lipzoo.data import DataConfig, Split
from lipzoo.evaluate.attack import Attacked, Strength, attack
from lipzoo.evaluate.radii import Radii, as_input, pair_constants, radii_of
from lipzoo.models import AbstractModule
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.progress import waiting
from lipzoo.system.version import VERSION
from lipzoo.theory.numbers import format_power
from lipzoo.train.checkpoint import Loaded, load

SCHEMA = 1
"""The version of evaluation.json (docs/schema.md)."""
TOGETHER = 50
"""Images that are attacked at once, each from all starts and at all radii."""
SLACK = 1e-5
"""Adversaries are float32 numbers, and what rounding does to logits is not covered: so much nearer is no alarm."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What is known of a classifier on its test split.

    **Attributes:**

    - `loaded`: the model and where it came from. `certificate`: its global bound.
    - `epsilons`: ℓ₂ distances, of pixels in [0, 1].
    - `radii`: what is certified of each image.
    - `attacked`: what attacks found for the first images; None where none was asked for.
    """

    loaded: Loaded
    certificate: Certificate
    epsilons: tuple[float, ...]
    radii: Radii
    attacked: Attacked | None

    @property
    def count(self) -> int:
        """Images that were attacked."""
        return 0 if self.attacked is None else len(self.attacked.distance)

    @property
    def clean(self) -> float:
        """Accuracy on the test split."""
        return float(self.radii.correct.mean())

    @property
    def certified(self) -> list[float]:
        """The fraction of the test split that no change of size ε makes wrong."""
        return self.radii.certified_accuracy(self.epsilons)

    @property
    def attacked_accuracy(self) -> list[float] | None:
        """The fraction of the attacked images for which no adversary within ε was found."""
        if self.attacked is None:
            return None
        return [float((self.attacked.distance > epsilon).mean()) for epsilon in self.epsilons]

    def violations(self) -> list[int]:
        """The images that are certified within a distance at which an adversary was found: there must be none."""
        if self.attacked is None:
            return []
        radius = np.where(self.radii.correct, self.radii.radius, 0.0)[: self.count]
        return np.flatnonzero(self.attacked.distance < radius * (1 - SLACK) - SLACK).tolist()

    def to_json(self) -> dict[str, Any]:
        """A JSON object, laid out as docs/schema.md says."""
        bound, factor = self.certificate.lipschitz, self.certificate.l2_factor
        radius = self.radii.radius[self.radii.correct]
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
            "median_certified_radius_l2": float(np.median(radius)) if radius.size else 0.0,
            "attacked_images": self.count,
            "attacked_accuracy": self.attacked_accuracy,
            "violations": self.violations(),
        }
        if self.attacked is not None:
            first = slice(self.count)
            value["clean_accuracy_of_attacked"] = float(self.radii.correct[first].mean())
            subset = self.radii.correct[first, None] & (self.radii.radius[first, None] > np.array(self.epsilons))
            value["certified_accuracy_of_attacked"] = subset.mean(0).tolist()
            value["mean_true_probability"] = self.attacked.probability.mean(0).tolist()
            found = self.attacked.distance[np.isfinite(self.attacked.distance) & (self.attacked.distance > 0)]
            value["median_attack_distance_l2"] = float(np.median(found)) if found.size else None
        return value

    def __rich__(self) -> Group:
        table = Table("ε (ℓ₂)", title=f"{self.loaded.recipe.name}, step {self.loaded.step}: {self.clean:.2%} clean")
        columns = ["certified"]
        if self.attacked is not None:  # Of other images than all: so what is certified of these stands beside it.
            columns += [f"of the first {self.count:,}: certified", "under attack", "mean p(true)"]
        for name in columns:
            table.add_column(name, justify="right")
        values = self.to_json()
        for index, epsilon in enumerate(self.epsilons):
            cells = [f"{self.certified[index]:.2%}"]
            if self.attacked is not None:
                cells += [
                    f"{values['certified_accuracy_of_attacked'][index]:.2%}",
                    f"{values['attacked_accuracy'][index]:.2%}",
                    f"{values['mean_true_probability'][index]:.3f}",
                ]
            table.add_row(fraction(epsilon), *cells)
        return Group(table, Text(self.summary, style="dim"))

    @property
    def summary(self) -> str:
        """What the numbers are about."""
        bound = format_power(math.log10(max(self.certificate.lipschitz * (self.certificate.l2_factor or 1), 1e-300)))
        median = self.to_json()["median_certified_radius_l2"]
        told = (
            f"{len(self.radii.label):,} test images. Certified: no change of the pixels (in [0, 1]) of ℓ₂ size ε makes "
            f"the class wrong; median radius {median:.3g}, L (ℓ₂ → ℓ₂) at most {bound}. The rounding of the network's "
            "own forward pass is not covered."
        )
        if self.attacked is not None:
            told += f" Attacked: the first {self.count:,} images."
        return told


def evaluate(
    directory: Path, epsilons: Sequence[float], attacked: int, strength: Strength, seed: int = 0
) -> Evaluation:
    """Evaluates the newest checkpoint under `directory` on its test split, and attacks the first `attacked` images.

    **Raises:** UserError if it is no classifier of images, or cannot be certified.
    """
    loaded = load(directory)
    data = loaded.recipe.data
    if not isinstance(data, DataConfig):
        raise UserError(f"{loaded.path} holds a model of text, and radii are of images: lipzoo.certify bounds it")
    try:
        certificate, pairs = Certificate.of(loaded.model), pair_constants(loaded.model)
    except ValueError as error:
        raise UserError(f"the checkpoint {loaded.path} cannot be certified: {error}") from error
    test = data.load(loaded.recipe.training.seed).tests["val"]
    with waiting("evaluating", len(test.label)) as wait:
        radii = radii_of(loaded.model, test, data.white, pairs, wait.show)
    found = _attack(loaded.model, test, data.white, epsilons, min(attacked, len(test.label)), strength, seed)
    return Evaluation(loaded, certificate, tuple(epsilons), radii, found)


def _attack(
    model: AbstractModule,
    test: Split,
    white: int,
    epsilons: Sequence[float],
    count: int,
    strength: Strength,
    seed: int,
) -> Attacked | None:
    """The attacks on the first images, so many at once; distances are measured again in float64."""
    if not count:
        return None
    radii, parts = jnp.asarray(epsilons, jnp.float32), []

    @jax.jit
    def run(model: AbstractModule, images: Float[Array, "n pixels"], labels: Array, keys: Array) -> Attacked:
        return jax.vmap(lambda x, y, key: attack(model, x, y, radii, key, strength))(images, labels, keys)

    keys = jax.random.split(jax.random.key(seed), len(test.label))
    with waiting("attacking", count) as wait:
        for start in range(0, count, TOGETHER):
            chosen = np.minimum(np.arange(start, start + TOGETHER), count - 1)  # The last batch is filled up.
            images = as_input(test.input[chosen], white)
            found = jax.device_get(run(model, images, test.label[chosen], keys[chosen]))
            distance = np.linalg.norm(found.nearest.astype(np.float64) - images.astype(np.float64), axis=1)
            found = found._replace(distance=np.where(np.isfinite(found.distance), distance, math.inf))
            parts.append(found)
            wait.advance(min(TOGETHER, count - start))
    return jax.tree.map(lambda *found: np.concatenate(found)[:count], *parts)


def write(evaluation: Evaluation, run: Path) -> list[Path]:
    """Writes evaluation.json, radii.npz and, of images that were attacked, adversaries.npz into a folder."""
    text = json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n"
    write_text(run / "evaluation.json", text)
    evaluation.radii.save(run / "radii.npz")
    paths = [run / "evaluation.json", run / "radii.npz"]
    if evaluation.attacked is not None:
        with (run / "adversaries.npz").open("wb") as file:
            np.savez_compressed(file, **evaluation.attacked._asdict())
        paths.append(run / "adversaries.npz")
    return paths


def alarm(evaluation: Evaluation, run: Path) -> int:
    """1, with a sentence on stderr and the examples in a file, if an attack came nearer than what is certified."""
    wrong = evaluation.violations()
    if not wrong or evaluation.attacked is None:
        return 0
    path = run / "violations.npz"
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            index=np.array(wrong),
            nearest=evaluation.attacked.nearest[wrong],
            distance=evaluation.attacked.distance[wrong],
            radius=evaluation.radii.radius[wrong],
        )
    print(
        f"ALARM: adversaries within the certified radius of images {', '.join(map(str, wrong[:10]))}: the certificate "
        f"is wrong, or rounding; they are in {path}",
        file=sys.stderr,
    )
    return 1


def fraction(epsilon: float) -> str:
    """36/255, where it is a whole number of those."""
    whole = epsilon * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-6 else f"{epsilon:g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
