"""A recipe resolved: what a compiled step depends on, and the numbers that it takes as arguments."""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import PRNGKeyArray

from lipzoo.constraints import Constraint, Unconstrained
from lipzoo.data.config import Sizes
from lipzoo.models import AbstractModule
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.families import build
from lipzoo.optim import OptimizerConfig
from lipzoo.optim.base import Spread
from lipzoo.optim.ebc.clip import trust_region
from lipzoo.optim.ebc.config import EBCConfig
from lipzoo.optim.hyper import Hyper
from lipzoo.optim.schedules import Factor
from lipzoo.recipe.lazy import every
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.weight import Weight, bare, weights
from lipzoo.train.losses import Loss


class Held(NamedTuple):
    """How a weight is constrained, the norm of its update per unit of lr × share (infinite if it is not known), and
    every how many steps it is done."""

    constraint: Constraint
    update_sup: float
    every: int = 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """The structure of a run: runs of equal plans share one compilation, and differ in their `Hyper` and seed.

    **Attributes:**

    - `model`, `sizes`: what builds the network. Inside a step its weights are bare: without caps and shares of their
      own.
    - `optimizer`, `ebc`: configurations whose numbers of `Hyper` are not to be read.
    - `held`: how each constrained weight is held, by name.
    - `steps`: of the schedule. `parts`: of a batch, one after the other.
    - `white`: the pixel value that becomes 1; None for tokens. `averages`: whether the mean of the weights is kept.
    - `measures`: whether a step tells how far it moved its batch.
    """

    model: AbstractModelConfig
    sizes: Sizes
    optimizer: OptimizerConfig
    ebc: EBCConfig
    held: tuple[tuple[str, Held], ...]
    steps: int
    parts: int
    model_dtype: str
    white: int | None
    averages: bool
    measures: bool
    loss: Loss

    def build_model(self, key: PRNGKeyArray) -> AbstractModule:
        """The network with fresh weights, bare."""
        return bare(build(self.model, self.sizes, key=key))

    def abstract_model(self) -> Any:
        """Its structure, without computing it."""
        return eqx.filter_eval_shape(self.build_model, jax.random.key(0))

    def transform(self, spread: Spread = lambda function: function) -> optax.GradientTransformationExtraArgs:
        """The optimizer with its trust region (see `OptimizerConfig.build`)."""
        return self.optimizer.build(trust_region(self.ebc), spread)

    @property
    def factor(self) -> Factor:
        """The learning rate of each step as a fraction of its peak."""
        return self.optimizer.factor(self.steps)


@functools.cache
def resolve(recipe: Recipe) -> tuple[Plan, Hyper]:
    """The plan and the numbers of a recipe that is complete. Each is resolved once, whoever asks."""
    found = weights(recipe.abstract_model())
    ebc, training = recipe.ebc, recipe.training
    hyper = recipe.optimizer.hyper(
        {weight.name: weight.share for weight in found},
        {weight.name: weight.cap for weight in found},
        temperature=training.temperature,
        margin=training.margin,
        smoothing=training.label_smoothing,
        annealing=training.annealing,
        target_kl=ebc.target_kl,
        ema=training.ema,
    )
    plan = Plan(
        recipe.model,
        recipe.data.sizes,
        recipe.optimizer.structure(),
        dataclasses.replace(ebc, target_kl=EBCConfig.target_kl) if ebc.enable else EBCConfig(),
        tuple((weight.name, _held(recipe, weight)) for weight in found if _acts(recipe, weight)),
        training.steps,
        training.parts(recipe.data.batch_size, recipe.data.unit[1], cpu=jax.default_backend() == "cpu"),
        training.model_dtype,
        recipe.data.white,
        training.ema > 0,
        training.measure_steps,
        Loss(training.loss, training.margin > 0, training.label_smoothing > 0),
    )
    return plan, hyper


def _held(recipe: Recipe, weight: Weight) -> Held:
    constraint, optimizer = recipe.constraint, recipe.optimizer
    return Held(constraint.of(weight), optimizer.update_sup(weight), every(constraint, optimizer, weight))


def _acts(recipe: Recipe, weight: Weight) -> bool:
    """Whether a weight's constraint does anything."""
    constraint = recipe.constraint.of(weight)
    free = constraint.caps and weight.cap == float("inf")
    return not free and not isinstance(constraint, Unconstrained)
