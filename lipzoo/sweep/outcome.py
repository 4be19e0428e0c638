"""What a sweep tells of a run: how it was set, how it ended, and what is certified of its weights."""

import math
import time
from typing import Any

import jax
import numpy as np

from lipzoo.constraints.seal import seal
from lipzoo.data import Data
from lipzoo.devices.mesh import make_mesh
from lipzoo.evaluate.curve import prove
from lipzoo.recipe.asked import log_bound, without_arrays
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.results import Row
from lipzoo.sweep.settings import value_of
from lipzoo.sweep.together import Trained
from lipzoo.system.version import VERSION
from lipzoo.theory.weight import bare
from lipzoo.train.evaluate import make_evaluate
from lipzoo.train.state import all_finite

ALWAYS = ("optimizer", "constraint", "sigma_max", "lr", "weight_decay", "temperature", "steps", "seed")
"""Fields that every row tells, whether a sweep varies them or not."""
LAST = 0.1
"""The part of a run over which its training loss is averaged."""


def outcome(recipe: Recipe, trained: Trained, data: Data) -> Row:
    """The loss, accuracy and certified bound of weights as they would be stored: sealed where the recipe says so.

    A run has diverged if its loss or a weight is not finite in the end.
    """
    steps = len(trained.curves["loss"])
    last = trained.curves["loss"][-max(1, round(LAST * recipe.training.steps)) :]
    times = {"seconds": round(trained.seconds, 3), "seconds_to_first_step": round(trained.first, 3)}
    row: Row = {"steps_done": steps, "train_loss": float(last.mean()), **times}
    if not (np.isfinite(trained.curves["loss"][-1]) and all_finite(trained.model)):
        return {"status": "diverged", **row, "train_loss": None, "reason": "the loss or a weight is not finite"}
    model = _stored(recipe, trained.model)
    proved = prove(model)
    values = make_evaluate(recipe, make_mesh(), data)(jax.device_put(model), proved=proved)
    log_a_priori = log_bound(without_arrays(recipe.abstract_model()), recipe)
    if not math.isfinite(values["val_loss"]):
        return {"status": "diverged", **row, "reason": "the validation loss is not finite"}
    row |= {**values, "a_priori": _exp(log_a_priori), "log10_a_priori": log_a_priori / math.log(10)}
    if proved is not None and proved.lipschitz > 0:
        row["log10_lipschitz"] = math.log10(proved.lipschitz)
    return {"status": "done", **{name: _number(value) for name, value in row.items()}}


def _stored(recipe: Recipe, model: Any) -> Any:
    if recipe.constraint.seal:
        model = bare(seal(recipe.dressed(jax.tree.map(jax.numpy.asarray, model))))
    return jax.tree.map(np.asarray, model)


def _exp(value: float) -> float:
    return math.exp(value) if value < math.log(1e300) else math.inf


def _number(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def described(recipe: Recipe) -> Row:
    """What every row tells of its recipe."""
    from datetime import UTC, datetime

    device = jax.devices()[0]
    return {
        "recipe": recipe.name,
        **{name: value_of(recipe, name) for name in ALWAYS},
        "device": f"{device.platform} ({device.device_kind})",
        "versions": f"lipzoo {VERSION}, jax {jax.__version__}",
        "finished": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
    }
