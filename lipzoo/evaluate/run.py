"""A checkpoint evaluated on its test split: clean, certified and attacked accuracy, in files beside the run."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.measured import ExactNorms
from lipzoo.certify.run import arithmetic_of
from lipzoo.certify.tighten import STEPS
from lipzoo.data import DataConfig, Split
from lipzoo.evaluate.attack import Attacked, Strength, attack
from lipzoo.evaluate.evaluation import Evaluation
from lipzoo.evaluate.local import local_radius
from lipzoo.evaluate.radii import Radii, as_input, pair_constants, radii_of
from lipzoo.evaluate.rounding import Rounding
from lipzoo.evaluate.tightness import Tightness, tightness
from lipzoo.models import AbstractModule
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.progress import waiting
from lipzoo.theory.bound import Bound
from lipzoo.theory.functions import Format
from lipzoo.theory.space import SpaceError
from lipzoo.theory.steering import Steering
from lipzoo.train.load import Loaded, load

EPSILONS = (36 / 255, 72 / 255, 108 / 255, 1.0)
"""ℓ₂ distances at which the field tells certified accuracy."""
TOGETHER = 50
"""Images that are attacked at once, each from all starts and at all radii."""
SAMPLE = 64
"""Images from which the search for large gains starts."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """What is done beside global radii.

    **Attributes:**

    - `images`: how many images, the first ones, are looked at one by one.
    - `local`, `attack`, `tightness`: whether these get bounds around each, are attacked, and large gains are sought.
    - `strength`: of the attack. `seed`: of its starts. `tighten`: steps of the search for smaller bounds.
    """

    images: int = 200
    local: bool = True
    attack: bool = True
    tightness: bool = True
    strength: Strength = Strength()
    seed: int = 0
    tighten: int = STEPS


def evaluate(
    directory: str | Path,
    epsilons: Sequence[float] = EPSILONS,
    effort: Effort = Effort(),
    dtype: Format | None = None,
) -> Evaluation:
    """Evaluates the newest checkpoint under `directory` on its test split.

    Rounding is covered of a network that runs in `dtype`, by default that in which it was trained.

    !!! example

        ```python
        evaluate("runs/digits_mlp/…", effort=Effort(images=20))  # in a notebook it shows itself as tables
        ```

    **Raises:** UserError if it is no classifier of images, cannot be certified, or its pixels are no numbers.
    """
    loaded = load(directory)
    test, white = _test_split(loaded)
    norms, runs_in = ExactNorms(), arithmetic_of(loaded, dtype)
    try:
        with waiting("certifying", None) as wait:
            certificate = Certificate.of(
                loaded.model, watch=wait.show, tighten=effort.tighten, norms=norms, arithmetic=runs_in
            )
            pairs = pair_constants(loaded.model, effort.tighten, norms)
    except ValueError as error:
        raise UserError(f"the checkpoint {loaded.path} cannot be certified: {error}") from error
    with waiting("evaluating", len(test.label)) as wait:
        rounding = None if runs_in is None else Rounding(loaded.model, norms, runs_in)
        radii = radii_of(loaded.model, test, white, pairs, wait.show, rounding)
    count = min(effort.images, len(test.label))
    local = _local(loaded, test, white, radii, count, norms, rounding) if effort.local and count else None
    found = None
    if effort.attack and count:
        found = _attack(loaded.model, test, white, epsilons, count, effort, loaded.recipe.training.temperature)
    rows = _tightness(loaded, test, white, certificate.lipschitz, norms) if effort.tightness else ()
    return Evaluation(loaded, certificate, tuple(epsilons), radii, local, found, rows)


def _test_split(loaded: Loaded) -> tuple[Split, int]:
    """Test images of the checkpoint's own data, and their largest pixel value."""
    data = loaded.recipe.data
    if not isinstance(data, DataConfig):
        raise UserError(
            f"{loaded.path} holds a model of text, and radii are of images: give --prompt for bounds around a text"
        )
    test = data.load(loaded.recipe.training.seed).tests["val"]
    if not len(test.label):
        raise UserError(f"the test split of {data.data} holds no labelled images")
    if not np.isfinite(test.input).all():
        raise UserError(f"the test images of {data.data} hold NaN or infinite pixels: there is no distance from these")
    return test, data.white


def _local(
    loaded: Loaded, test: Split, white: int, radii: Radii, count: int, norms: ExactNorms, rounding: Rounding | None
) -> Float[np.ndarray, " first"]:
    """The radii of the first images by bounds around each of them, of the network as it runs; the global ones where
    parts have no such bound."""
    model = jax.tree.map(np.asarray, loaded.model)
    steering, found = Steering(norms), (radii.radius if radii.running is None else radii.running)[:count].copy()
    with waiting("bounding around each", count) as wait:
        for index in range(count):
            wait.advance(1)
            image = as_input(test.input[index], white)
            if radii.correct[index]:
                size = float(np.linalg.norm(image.astype(np.float64)))

                def off(reach: float, size: float = size, root: float = math.sqrt(image.size)) -> float:
                    return 0.0 if rounding is None else rounding.off((size + reach) / root * (1 + 2.0**-40))

                try:
                    found[index] = local_radius(model, image, int(radii.prediction[index]), found[index], steering, off)
                except SpaceError as error:
                    print(f"warning: global radii alone, since {error}", file=sys.stderr)
                    break
    return found


def _tightness(loaded: Loaded, test: Split, white: int, certified: float, norms: ExactNorms) -> tuple[Tightness, ...]:
    model = loaded.model
    start = Bound.start(model.takes)  # pyright: ignore[reportArgumentType]
    inputs = jnp.asarray(as_input(test.input[:SAMPLE], white))
    with waiting("looking for large gains", None):
        return tuple(tightness(model, start, inputs, norms, certified))


def _attack(
    model: AbstractModule, test: Split, white: int, epsilons: Sequence[float], count: int, effort: Effort, sharp: float
) -> Attacked:
    """The attacks on the first images, so many at once; distances are measured again in float64.

    Probabilities are those of training, of logits times the temperature.
    """
    radii, parts = jnp.asarray(epsilons, jnp.float32), []

    @jax.jit
    def run(model: AbstractModule, images: Float[Array, "n pixels"], labels: Array, keys: Array) -> Attacked:
        return jax.vmap(lambda x, y, key: attack(lambda x: sharp * model(x), x, y, radii, key, effort.strength))(
            images, labels, keys
        )

    keys = jax.random.split(jax.random.key(effort.seed), len(test.label))
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
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "evaluation.json", text)
    evaluation.radii.save(run / "radii.npz", evaluation.local)
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
            radius=evaluation.best[wrong],
        )
    print(
        f"ALARM: adversaries within the certified radius of images {', '.join(map(str, wrong[:10]))}: the certificate "
        f"is wrong, or rounding; they are in {path}",
        file=sys.stderr,
    )
    return 1
