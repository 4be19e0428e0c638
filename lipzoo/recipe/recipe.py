"""Recipes: frozen dataclasses that say all there is to say about a run."""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from lipzoo.config.fields import field_refusal
from lipzoo.config.overrides import override_refusal
from lipzoo.constraints import WeightDecay
from lipzoo.data import DATA_KINDS, AbstractDataConfig, DataConfig
from lipzoo.data.config import Sizes
from lipzoo.models import AbstractModule, MLPConfig
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.families import FAMILIES, build
from lipzoo.optim.config import LR_FLAG, OptimizerConfig
from lipzoo.optim.ebc.config import EBCConfig
from lipzoo.recipe.constraint import CAP_FLAG, ConstraintConfig
from lipzoo.recipe.format1 import with_kinds
from lipzoo.recipe.lazy import lazy_refusal, lowest
from lipzoo.recipe.loss import loss_refusal
from lipzoo.recipe.memory import memory_refusal
from lipzoo.recipe.training import TrainingConfig
from lipzoo.recipe.validated import validated
from lipzoo.system.errors import UserError
from lipzoo.system.version import VERSION
from lipzoo.theory.weight import Weight, filled, map_weights, set_caps, weights

FORMAT = 2
"""The number of the format that recipes are stored in. All earlier ones can be read (`lipzoo.recipe.format1`)."""
PARTS = ("model", "data", "optimizer", "constraint", "training")
"""Parts that every stored recipe has; later ones have defaults."""
CAPS = (1e-6, 1e6)
"""Caps whose powers, up to the fourth, stay inside float32."""
KEPT = 64
"""Structures of models that are kept for recipes that come again."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run. `check` says what is wrong with one."""

    name: str = "digits_mlp"
    """Folder of the runs."""
    model: AbstractModelConfig = MLPConfig()
    data: AbstractDataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    constraint: ConstraintConfig = ConstraintConfig()
    training: TrainingConfig = TrainingConfig()
    ebc: EBCConfig = EBCConfig()

    def check(self, caps: bool = True) -> None:
        """Raises UserError, in one sentence that names the flag, if the recipe cannot be run or keep its promise.

        Without `caps` it does not ask yet whether these and the learning rate go together.
        """
        refusal = (
            field_refusal(self)
            or self._name_refusal()
            or self.model.conflict()
            or self.data.conflict()
            or self.model.misfit(self.complete().data.sizes)
            or self.training.conflict(self.data.batch_size)
            or self.optimizer.conflict(self.training.steps)
            or memory_refusal(self.model, self.complete().data, self.training.accum_steps)
            or self._constraint_refusal(caps)
            or loss_refusal(self.training.loss, self.complete())
            or (self.ebc.conflict(self.complete().abstract_model()) if self.ebc.enable else None)
        )
        if refusal:
            raise UserError(refusal)

    def _name_refusal(self) -> str | None:
        if not self.name.isprintable():
            return f"--name must be printable text, got {self.name!r}"
        if not all(part not in ("", ".", "..") for part in self.name.split("/")):
            return f"--name is a folder under runs/, without empty parts, . and .., got {self.name!r}"
        return None

    def build_model(self, key: PRNGKeyArray) -> AbstractModule:
        """The model with fresh weights, each with its cap and under it."""
        model = self.optimizer.shares(build(self.model, self.data.sizes, key=key))
        model = set_caps(model, {weight.name: self.cap_of(weight) for weight in weights(model)})

        def begin(weight: Weight) -> Weight:
            array = weight.array.astype(jnp.float32)  # Under JAX_ENABLE_X64 too.
            return weight.with_array(array * min(1.0, weight.cap / self.model.first_norm(weight)))

        return map_weights(begin, model)

    def window_at(self, step: int) -> int:
        """How many tokens attention looks back in this step, counted from 1; 0 for all."""
        return self.model.window_at((step - 1) / self.training.steps)

    def complete(self) -> "Recipe":
        """This with what has to be read from the data before a model can be built."""
        return dataclasses.replace(self, data=self.data.complete())

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` rebuilds the recipe, in any later version too."""
        value = {"format": FORMAT, **dataclasses.asdict(self)}
        for part, kinds in _kinds().items():
            kind = next(kind for kind, config in kinds.items() if isinstance(getattr(self, part), config))
            value[part] = {"kind": kind, **value[part]}
        return value

    @staticmethod
    def from_json(value: object, version: str = "") -> "Recipe":
        """The recipe of `to_json`, every field checked. What is not there has its default.

        So a field that is added needs a default under which older recipes mean what they meant, and what cannot be said
        by a default needs a new `FORMAT` and an upgrade here.

        **Raises:** UserError if it is no recipe, or one of another version: it names the `version` that wrote it.
        """
        here = f"lipzoo {VERSION}"
        by = f", written by lipzoo {version}," if version else ""
        unlike = f"the stored recipe{by} is not one that {here} can read"
        try:
            value = _upgraded(value)
            parts = {part: _config(kinds, value[part]) for part, kinds in _kinds().items()}
            others = {part: kind for part, kind in typing.get_type_hints(Recipe).items() if part not in parts}
            parts |= {part: validated(kind, value[part], part) for part, kind in others.items() if part in value}
            recipe = Recipe(**parts)
        except ValueError as error:
            raise UserError(f"{unlike}: {error}") from error
        if unknown := sorted(_fields(value) - _fields(recipe.to_json())):
            raise UserError(f"{unlike}: it has other settings: {', '.join(unknown[:3])}")
        if refusal := field_refusal(recipe):
            raise UserError(f"the stored recipe cannot be used: {refusal}")
        return recipe

    def abstract_model(self) -> Any:
        """The model's structure, without computing it."""
        return _abstract(self)

    def dressed(self, model: Any) -> Any:
        """A model of this recipe, bare as in a training step, with the caps and shares of its weights."""
        return filled(self.abstract_model(), model)

    def cap_of(self, weight: Weight) -> float:
        """The norm that a weight is held under or aimed at, infinite if there is none."""
        decay = self.optimizer.weight_decay
        sigma_max = self.constraint.sigma_max_of(weight)
        return self.constraint.of(weight).cap(sigma_max, self.optimizer.update_sup(weight), decay)

    def _constraint_refusal(self, caps: bool) -> str | None:
        config = self.constraint
        free = _free(self.model, self.data.complete().sizes)
        names = [weight.name for weight in weights(free)]
        held = [weight.name for weight in weights(free) if weight.geometry.bounded]  # As `ConstraintConfig.of` says.
        refusals = (
            override_refusal("--constraint-overrides", config.constraint_overrides, held),
            override_refusal(CAP_FLAG, config.sigma_max_overrides, held, numeric=True),
            override_refusal(LR_FLAG, self.optimizer.lr_overrides, names, numeric=True),
        )
        if any(refusals):
            return next(filter(None, refusals))
        shared = weights(self.optimizer.shares(free))
        refusal = next((r for w in shared if (r := self._weight_refusal(w))), None)
        if refusal or not caps:
            return refusal
        refusal = lazy_refusal(config, self.optimizer, shared)
        return refusal or next((r for w in shared if (r := self._step_refusal(w))), None)

    def _weight_refusal(self, weight: Weight) -> str | None:
        config, optimizer = self.constraint, self.optimizer
        cap, step = config.sigma_max_of(weight), optimizer.lr * weight.share
        if not 0 < step < math.inf:
            return f"the learning rate of {weight.name} must be positive and finite, got {step:g}: change {LR_FLAG}"
        low, high = CAPS
        if not low <= cap <= high:
            return f"the cap of {weight.name} must lie between {low:g} and {high:g}, got {cap:g}: change --sigma-max"
        if optimizer.weight_decay * step >= 1:
            rates = f"--weight-decay {optimizer.weight_decay:g} with a learning rate of {step:g}"
            return f"{rates} would flip the sign of {weight.name}: lower one"
        if isinstance(config.of(weight), WeightDecay) and not optimizer.weight_decay:
            return "--constraint weight-decay needs a --weight-decay above 0"
        return None

    def _step_refusal(self, weight: Weight) -> str | None:
        """Why a step of this learning rate is more than the constraint of a weight can take, or None."""
        config, optimizer, cap = self.constraint, self.optimizer, self.constraint.sigma_max_of(weight)
        goal = lowest(config, optimizer, dataclasses.replace(weight, cap=cap), optimizer.lr)
        sup = optimizer.update_sup(weight)
        reason = config.of(weight).refusal(goal, optimizer.lr * weight.share * sup + cap - goal)
        if reason and math.isinf(sup):
            return f"{reason}: use --optimizer muon or another --constraint for {weight.name}"
        if reason:
            remedy = "ask for a larger --lipschitz" if config.lipschitz else "raise --sigma-max"
            return f"--lr {optimizer.lr:g} is too high for {weight.name}: {reason}; lower it or {remedy}"
        return None


@functools.lru_cache(KEPT)
def _abstract(recipe: Recipe) -> Any:
    """The structure of a recipe's model."""
    return eqx.filter_eval_shape(recipe.build_model, jax.random.key(0))


@functools.lru_cache(KEPT)
def _free(model: AbstractModelConfig, sizes: Sizes) -> Any:
    """The structure of a model whose weights are free: the same for all recipes of a sweep."""
    return eqx.filter_eval_shape(functools.partial(build, model, sizes), key=jax.random.key(0))


def _upgraded(value: object) -> dict[str, Any]:
    """A stored recipe of any format as one of the newest. Raises ValueError if it is none."""
    if not isinstance(value, dict) or not all(isinstance(value.get(part), dict) for part in PARTS):
        raise ValueError(f"it lacks one of {', '.join(PARTS)}")
    number = value.get("format", 1)  # The first format had no number.
    if number not in range(1, FORMAT + 1):
        raise ValueError(f"its format is {number!r}, and the newest known here is {FORMAT}")
    return {**with_kinds(value), "format": FORMAT} if number == 1 else value


def _kinds() -> Mapping[str, Mapping[str, type]]:
    """The parts that are of several kinds, by the names that are stored."""
    return {"model": {name: family.config for name, family in FAMILIES.items()}, "data": DATA_KINDS}


def _config(kinds: Mapping[str, type], value: Mapping[str, Any]) -> Any:
    """A part of a recipe whose type is told by its kind."""
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"it holds a kind {kind!r}, and those known here are {', '.join(kinds)}")
    return validated(kinds[kind], {name: field for name, field in value.items() if name != "kind"})


def _fields(value: Any, prefix: str = "") -> set[str]:
    """The names of all fields of nested JSON objects."""
    if not isinstance(value, dict):
        return {prefix}
    return set().union(*(_fields(part, f"{prefix}.{name}" if prefix else name) for name, part in value.items()))
