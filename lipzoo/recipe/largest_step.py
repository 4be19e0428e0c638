"""What one training step can do to any prediction at most, proved before training: freedom from spikes, as a number.

A step takes a weight W, which is under its cap c, to the constrained Z = (1 - λl)W - lU, with l the learning rate times
the share, λ the decay, and ‖U‖ ≤ s, which is what the optimizer promises. So ‖Z - W‖ ≤ l(λc + s), ‖Z‖ ≤ c(1 - λl) + ls,
and the constraint moves Z by at most what it says itself (`Constraint.moves`). If it says nothing, or the optimizer
promises nothing, old and new weight are still both under the cap, so at most 2c apart. Both networks are then of one
architecture, under the same caps, with weights that differ by known norms, and `lipzoo.theory.runs` bounds how far
their outputs can be from each other: e in RMS norm, for all inputs. That is of the stored weights, computed exactly:
what a network in bfloat16 or float8 rounds comes on top. Schedules multiply a step, and trust regions an update, by a
factor up to 1: ‖Z - W‖ is then no larger, and ‖Z‖ at most c or what it is at 1, whichever is larger.

Then no logit of n moves by more than √n·e, no difference of two logits by more than g = √(2n)·e, and with temperature t
no cross-entropy of fixed margins and labels by more than tg (of other losses nothing is said), and no prediction by
more than KL ≤ min((tg)²/8, tg): log E exp(Δ) - E Δ is at most an eighth of the squared range of Δ (Hoeffding's lemma),
and at most the range.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from lipzoo.config.overrides import number, override
from lipzoo.layers.base import silent
from lipzoo.optim.config import LR_FLAG
from lipzoo.recipe.asked import with_lipschitz, without_arrays
from lipzoo.recipe.certify_at import with_certify_at
from lipzoo.recipe.lazy import lowest
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import Scalar, round_digits
from lipzoo.theory.products import unit_roundoff
from lipzoo.theory.runs import Runs
from lipzoo.theory.weight import Weight, cap_norm, map_weights, weights

SLOWEST = 1e-6
"""The part of a learning rate down to which a slower one is looked for."""
HALVINGS = 40
FORMING = 32
"""Roundings of all entries, and of scalars, by which a weight is formed, at most."""


@dataclasses.dataclass(frozen=True)
class LargestStep:
    """What no step of a recipe exceeds, for any input.

    **Attributes:**

    - `rms`: how far the logits of an image or a token move, an RMS norm; infinite where nothing is proved.
    - `classes`, `temperature`, `loss_name`: how many logits there are, by what the loss multiplies them; which it is.
    - `free`: the weights that no cap holds. `silent`: the modules that do not say how far they can be off.
    """

    rms: float
    classes: int
    temperature: float
    loss_name: str = "cross-entropy"
    free: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    @property
    def logit(self) -> float:
        """How far a logit moves."""
        return math.sqrt(self.classes) * self.rms * (1 + 2.0**-40)

    @property
    def range(self) -> float:
        """How far the difference of two logits that the loss sees moves: a cross-entropy by no more nats."""
        return self.temperature * math.sqrt(2) * self.logit * (1 + 2.0**-40)

    @property
    def loss(self) -> float:
        """How far the loss of one image or token moves, in nats; infinite where it is no cross-entropy."""
        return self.range if self.loss_name == "cross-entropy" else math.inf

    @property
    def kl(self) -> float:
        """How far a prediction moves, in nats."""
        return min(self.range * self.range / 8, self.range) * (1 + 2.0**-40)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; where nothing is proved, null."""
        values = {"logits_rms": self.rms, "logit": self.logit, "loss_nats": self.loss, "kl_nats": self.kl}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    @property
    def told(self) -> str:
        """What is proved, or why nothing is."""
        if self.silent:
            return f"nothing is proved, since {', '.join(self.silent)} does not say how far it can be off"
        if not math.isfinite(self.rms):
            names = ", ".join(self.free[:3]) + (", …" if len(self.free) > 3 else "")
            return f"nothing is proved, since {f'no cap holds {names}' if names else 'the bound has no number'}"
        logit, kl = (round_digits(value, 3) for value in (self.logit, self.kl))
        loss = f"any loss by {round_digits(self.loss, 3)} nats, " if math.isfinite(self.loss) else ""
        return (
            f"any logit by {logit}, {loss}any prediction by {kl} nats (KL), for every "
            "input, computed exactly with the stored weights"
        )


def largest_step(recipe: Recipe, lr: float | None = None) -> LargestStep:
    """What the steps of a complete recipe can do, at a peak learning rate, by default its own."""
    model, peak = without_arrays(recipe.abstract_model()), recipe.optimizer.lr if lr is None else lr

    if names := silent(model):
        return LargestStep(math.inf, *_of_loss(recipe), silent=tuple(names))

    def moving(weight: Weight) -> Weight:
        """The weight with the difference to the next step's in place of its share, in units of its cap if it has one.

        So the parts that bounds cut it into know theirs, since they know their caps.
        """
        moved = _moved(recipe, weight, peak)
        if weight.geometry.bounded:
            held = recipe.constraint.of(weight).guarantees and math.isfinite(weight.cap)
            return dataclasses.replace(weight, share=moved / weight.cap if held else math.inf)
        return dataclasses.replace(weight, share=moved)

    moved = map_weights(moving, model)
    start = Bound.start(model.takes, 1.0, Runs(difference=_difference, held=True))
    free = tuple(w.name for w in weights(moved) if w.geometry.bounded and math.isinf(w.share))
    rms = math.inf if free else float(moved.bound(start, cap_norm).deviation)
    return LargestStep(rms, *_of_loss(recipe), free)


def _of_loss(recipe: Recipe) -> tuple[int, float, str]:
    return recipe.data.sizes.classes, recipe.training.temperature, recipe.training.loss


def _difference(weight: Weight) -> Scalar:
    difference = weight.share * weight.cap if weight.geometry.bounded else weight.share
    return np.full(np.shape(weight.array)[:-2], difference)[()]


def _moved(recipe: Recipe, weight: Weight, lr: float) -> float:
    """‖W' - W‖ at most, in the weight's geometry; of what is added to logits, the largest entry."""
    given, decay = override(recipe.optimizer.lr_overrides, weight.name), recipe.optimizer.weight_decay
    step = lr * weight.share if given is None else number(given, LR_FLAG)
    size = step * recipe.optimizer.update_sup(weight)
    shape, geometry = weight.array.shape, weight.geometry
    rounding = FORMING * (geometry.roundings(shape) + 1) * unit_roundoff(np.float32)
    if not weight.geometry.bounded:  # No cap bounds what decay does to it.
        return math.inf if decay else size / weight.rms_factor * (1 + rounding)
    reached = max(weight.cap * (1 - decay * step) + size, weight.cap) * (1 + rounding)  # At a factor of 1, or of 0.
    moved = size + decay * step * weight.cap + rounding * reached
    goal = lowest(recipe.constraint, recipe.optimizer, weight, lr)
    constraint = recipe.constraint.of(weight)
    moved += geometry.moves(shape, lambda shape, norm: constraint.moves(shape, goal, norm), reached)
    return min(moved, 2 * weight.cap)


def fitted(recipe: Recipe) -> Recipe:
    """The recipe with the caps that --lipschitz asks for and the learning rate that --max-step-kl admits, checked.

    It is its own: what a run has stored is not changed when the run is resumed. Raises UserError.
    """
    recipe.check(caps=False)
    recipe = within_limit(with_certify_at(with_lipschitz(recipe)))
    recipe.check()
    return recipe


def within_limit(recipe: Recipe) -> Recipe:
    """The recipe, at the learning rate that --max-step-kl admits where --fit-lr asks for it.

    **Raises:** UserError if a step could move a prediction further than that.
    """
    limit, lr = recipe.training.max_step_kl, recipe.optimizer.lr
    if not limit:
        return recipe
    whole = recipe.complete()
    found = largest_step(whole)
    if found.kl <= limit:
        return recipe
    if not math.isfinite(found.rms):
        raise UserError(f"--max-step-kl {limit:g} cannot be kept: {found.told}")
    fitting = _fitting(whole, limit)
    if fitting is None:
        raise UserError(
            f"--max-step-kl {limit:g} cannot be kept: even a step at {SLOWEST:g} times --lr {lr:g} could move a "
            f"prediction by {round_digits(largest_step(whole, lr * SLOWEST).kl, 3)} nats; raise it, or lower the caps"
        )
    if not recipe.training.fit_lr:
        raise UserError(
            f"--lr {lr:g} could move a prediction by {round_digits(found.kl, 3)} nats in one step, more than "
            f"--max-step-kl {limit:g}: lower it to {fitting:g}, or add --fit-lr"
        )
    return dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, lr=fitting))


def _fitting(recipe: Recipe, limit: float) -> float | None:
    """The largest learning rate within a limit, to three digits; None if there is none."""
    low, high = recipe.optimizer.lr * SLOWEST, recipe.optimizer.lr
    if largest_step(recipe, low).kl > limit:
        return None
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if largest_step(recipe, middle).kl <= limit else (low, middle)
    rounded = float(round_digits(low, 3, up=False))
    return rounded if largest_step(recipe, rounded).kl <= limit else low
