"""Recipes: frozen dataclasses that say all there is to say about a run."""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from pydantic import TypeAdapter, ValidationError
from tyro.conf import arg

from lipzoo.constraints import (
    CONSTRAINTS,
    Constraint,
    ConstraintName,
    SpectralNormalize,
    SpectralWeightDecay,
    Unconstrained,
    WeightDecay,
)
from lipzoo.data import DataConfig, TextConfig, TokensConfig
from lipzoo.system.errors import UserError
from lipzoo.config.fields import number_refusal
from lipzoo.recipe.format1 import with_kinds
from lipzoo.recipe.memory import memory_refusal
from lipzoo.models import AbstractModule, GPTConfig, MLPConfig
from lipzoo.optim import LR_FLAG, EBCConfig, OptimizerConfig
from lipzoo.config.overrides import number, override, override_refusal
from lipzoo.theory.precision import Precision
from lipzoo.devices.mesh import mesh_shape
from lipzoo.theory.weight import Weight, map_weights, set_caps, weights

CAP_FLAG = "--sigma-max-overrides"
AT_ONCE = 65_536
"""Tokens or images that a device works on at once, unless --accum-steps says how many parts there are."""
FORMAT = 2
"""The number of the format that recipes are stored in. All earlier ones can be read (`lipzoo.recipe.format1`)."""
PARTS = ("model", "data", "optimizer", "constraint", "training")
"""Parts that every stored recipe has; later ones have defaults."""
KINDS: Mapping[str, Mapping[str, type]] = {
    "model": {"mlp": MLPConfig, "gpt": GPTConfig},
    "data": {"images": DataConfig, "text": TextConfig, "tokens": TokensConfig},
}
"""The parts that are of several kinds, by the names that are stored."""
CAPS = (1e-6, 1e6)
"""Caps whose powers, up to the fourth, stay inside float32."""


@dataclasses.dataclass(frozen=True)
class ConstraintConfig:
    """The part of a recipe that describes how weights are held."""

    constraint: ConstraintName = "soft-cap"
    """Map of singular values applied after every step."""
    sigma_max: float = 3.0
    """Cap on every weight's RMS→RMS norm."""
    embedding_cap: float = 1.0
    """Cap on the RMS norm of every token's embedding."""
    constraint_overrides: tuple[str, ...] = ()
    """LAYER=CONSTRAINT pairs for single layers; LAYER may be a pattern, as in 'layers.*=svd-cap'."""
    sigma_max_overrides: tuple[str, ...] = ()
    """LAYER=CAP pairs for single layers."""
    spectral_wd: float = 0.1
    """Fraction of the largest singular value that spectral-weight-decay takes off each step."""
    project_dtype: Precision = "float32"
    """Precision of the matrix products of soft-cap, stiefel and hard-cap-poly (the others keep to float32); for
    float8_e4m3fn weights are rounded to it, scaled by a power of two, and multiplied in bfloat16."""
    seal: bool = True
    """Cut back, in float64, what exceeds its cap by approximation or rounding when a checkpoint is written."""

    def make(self, name: str) -> Constraint:
        """The constraint of this name with the options that it takes."""
        if name == "spectral-weight-decay":
            return SpectralWeightDecay(rate=self.spectral_wd, project_dtype=self.project_dtype)
        for known, constraint in CONSTRAINTS.items():
            if name == known:
                return constraint(project_dtype=self.project_dtype)
        raise UserError(f"there is no constraint {name!r}; choose from {', '.join(CONSTRAINTS)}")

    def names(self) -> set[str]:
        """The constraints that are named for some weight."""
        return {self.constraint, *(pair.partition("=")[2] for pair in self.constraint_overrides)}

    def of(self, weight: Weight) -> Constraint:
        """The constraint of one weight.

        A bias, a gain, and each row of an embedding have one singular value, their norm; stiefel and spectral-hammer
        would never let it be small. So whatever caps holds these by spectral-normalize, and what does not leaves them
        free.
        """
        if weight.role == "position":
            return Unconstrained()
        constraint = self.make(override(self.constraint_overrides, weight.name) or self.constraint)
        if weight.role not in ("bias", "gain", "embedding") or isinstance(constraint, WeightDecay):
            return constraint
        return SpectralNormalize() if constraint.caps else Unconstrained()

    def sigma_max_of(self, weight: Weight) -> float:
        """The cap asked for."""
        value = override(self.sigma_max_overrides, weight.name)
        default = self.embedding_cap if weight.role == "embedding" else self.sigma_max
        return default if value is None else number(value, CAP_FLAG)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The part of a recipe that describes the run."""

    steps: int = 2000
    """Optimizer steps."""
    temperature: float = 1.0
    """The training loss is the cross-entropy of temperature × logits; the model and its bound are without it."""
    accum_steps: int = 1
    """Parts that a batch is computed in, one after the other, to save memory; 0 for as many as keep a device at 65,536
    tokens or images at once."""
    model_dtype: Precision = "float32"
    """Precision of forward and backward; weights and optimizer stay in float32. For float8_e4m3fn weights are rounded
    to it, each matrix scaled by a power of two, and computed with in bfloat16."""
    seed: int = 0
    """Seed of the first weights, the batches and random labels."""
    mesh: str = "1"
    """Devices: 8 share each batch, 4x2 also hold each weight in 2 parts (data × FSDP)."""
    log_interval: int = 50
    """Steps between lines of metrics.jsonl."""
    val_interval: int = 500
    """Steps between validations on the whole test split."""
    save_interval: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints to keep, beside the best."""
    tensorboard: bool = False
    """Write TensorBoard files into the run (pip install 'lipzoo[tensorboard]')."""
    wandb: bool = False
    """Log to Weights & Biases (pip install 'lipzoo[wandb]')."""

    def parts(self, batch_size: int, size: int) -> int:
        """The parts of a batch of so many examples, each of so many tokens or images."""
        if self.accum_steps:
            return self.accum_steps
        rows = batch_size // self.devices
        fitting = (parts for parts in range(1, rows) if rows % parts == 0 and rows // parts * size <= AT_ONCE)
        return next(fitting, rows)

    @property
    def devices(self) -> int:
        """How many devices share each batch."""
        return math.prod(mesh_shape(self.mesh) or (1,))

    def refusal(self, batch_size: int) -> str | None:
        """Why there is no such run, or None."""
        if mesh_shape(self.mesh) is None:
            return f"--mesh takes a number of devices such as 8, or data × FSDP such as 4x2, got {self.mesh!r}"
        if self.accum_steps < 0:
            return f"--accum-steps must be at least 0, got {self.accum_steps}"
        for name in ("steps", "log_interval", "val_interval", "save_interval", "keep"):
            if getattr(self, name) < 1:
                return f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
        if not 0 < self.temperature <= 1e6:
            return f"--temperature must be positive and at most a million, got {self.temperature}"
        if not 0 <= self.seed < 2**32:
            return f"--seed must be between 0 and 4,294,967,295, got {self.seed}"
        if batch_size % (max(self.accum_steps, 1) * self.devices):
            parts = f"--accum-steps {self.accum_steps} × " if self.accum_steps else ""
            return f"--batch-size {batch_size} is not divisible by {parts}--mesh {self.mesh}"
        return None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run. `refusal` says what is wrong with one."""

    name: str = "digits_mlp"
    """Folder of the runs."""
    model: Annotated[MLPConfig | GPTConfig, arg(name="")] = MLPConfig()
    data: Annotated[DataConfig | TextConfig | TokensConfig, arg(name="")] = DataConfig()
    optimizer: Annotated[OptimizerConfig, arg(name="")] = OptimizerConfig()
    constraint: Annotated[ConstraintConfig, arg(name="")] = ConstraintConfig()
    training: Annotated[TrainingConfig, arg(name="")] = TrainingConfig()
    ebc: EBCConfig = EBCConfig()

    def check(self) -> None:
        """Raises UserError, in one sentence that names the flag, if the recipe cannot be run or keep its promise."""
        refusal = (
            number_refusal(self)
            or self._name_refusal()
            or self.model.refusal()
            or self.data.refusal()
            or self.training.refusal(self.data.batch_size)
            or self.optimizer.refusal(self.training.steps)
            or memory_refusal(self.model, self.complete().data, self.training.accum_steps)
            or self._constraint_refusal()
            or (self.ebc.refusal(self.complete().abstract_model()) if self.ebc.enable else None)
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
        model = self.optimizer.shares(self.model.build(*self.data.sizes, key=key))
        model = set_caps(model, {weight.name: self.cap_of(weight) for weight in weights(model)})

        def begin(weight: Weight) -> Weight:
            array = weight.array.astype(jnp.float32)  # Under JAX_ENABLE_X64 too.
            return weight.with_array(array * min(1.0, weight.cap / self.model.first_norm(weight)))

        return map_weights(begin, model)

    def window_at(self, step: int) -> int:
        """How many tokens attention looks back in this step, counted from 1; 0 for all."""
        return self.model.window_at((step - 1) / self.training.steps) if isinstance(self.model, GPTConfig) else 0

    def complete(self) -> "Recipe":
        """This with what has to be read from the data before a model can be built."""
        return dataclasses.replace(self, data=self.data.complete())

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` rebuilds the recipe, in any later version too."""
        value = {"format": FORMAT, **dataclasses.asdict(self)}
        for part, kinds in KINDS.items():
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
        here = f"lipzoo {importlib.metadata.version('lipzoo')}"
        by = f", written by lipzoo {version}," if version else ""
        unlike = f"the stored recipe{by} is not one that {here} can read"
        try:
            value = _upgraded(value)
            parts = {part: _config(kinds, value[part]) for part, kinds in KINDS.items()}
            recipe = TypeAdapter(Recipe).validate_python({**value, **parts})
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{unlike}: {place}: {first['msg']}") from error
        except ValueError as error:
            raise UserError(f"{unlike}: {error}") from error
        if unknown := sorted(_fields(value) - _fields(recipe.to_json())):
            raise UserError(f"{unlike}: it has other settings: {', '.join(unknown[:3])}")
        if refusal := number_refusal(recipe):
            raise UserError(f"the stored recipe cannot be used: {refusal}")
        return recipe

    def abstract_model(self) -> Any:
        """The model's structure, without computing it."""
        return eqx.filter_eval_shape(self.build_model, jax.random.key(0))

    def cap_of(self, weight: Weight) -> float:
        """The norm that a weight is held under or aimed at, infinite if there is none."""
        decay = self.optimizer.weight_decay
        sigma_max = self.constraint.sigma_max_of(weight)
        return self.constraint.of(weight).cap(sigma_max, self.optimizer.update_sup(weight), decay)

    def _constraint_refusal(self) -> str | None:
        config = self.constraint
        build = functools.partial(self.model.build, *self.data.complete().sizes)
        free = eqx.filter_eval_shape(build, key=jax.random.key(0))
        names = [weight.name for weight in weights(free)]
        held = [weight.name for weight in weights(free) if weight.role != "position"]  # As `ConstraintConfig.of` says.
        refusals = (
            override_refusal("--constraint-overrides", config.constraint_overrides, held),
            override_refusal(CAP_FLAG, config.sigma_max_overrides, held, numeric=True),
            override_refusal(LR_FLAG, self.optimizer.lr_overrides, names, numeric=True),
        )
        if any(refusals):
            return next(filter(None, refusals))
        if not 0 <= config.spectral_wd <= 1:
            return f"--spectral-wd must lie between 0 and 1, got {config.spectral_wd}"
        return next((r for w in weights(self.optimizer.shares(free)) if (r := self._weight_refusal(w))), None)

    def _weight_refusal(self, weight: Weight) -> str | None:
        config, optimizer = self.constraint, self.optimizer
        constraint, cap = config.of(weight), config.sigma_max_of(weight)
        step = optimizer.lr * weight.share
        if not 0 < step < math.inf:
            return f"the learning rate of {weight.name} must be positive and finite, got {step:g}: change {LR_FLAG}"
        low, high = CAPS
        if not low <= cap <= high:
            return f"the cap of {weight.name} must lie between {low:g} and {high:g}, got {cap:g}: change --sigma-max"
        if optimizer.weight_decay * step >= 1:
            rates = f"--weight-decay {optimizer.weight_decay:g} with a learning rate of {step:g}"
            return f"{rates} would flip the sign of {weight.name}: lower one"
        if isinstance(constraint, WeightDecay) and not optimizer.weight_decay:
            return "--constraint weight-decay needs a --weight-decay above 0"
        reason = constraint.refusal(cap, step * optimizer.update_sup(weight))
        if reason and math.isinf(optimizer.update_sup(weight)):
            return f"{reason}: use --optimizer muon or another --constraint for {weight.name}"
        if reason:
            return f"--lr {optimizer.lr:g} is too high for {weight.name}: {reason}; lower it or raise --sigma-max"
        return None


def _upgraded(value: object) -> dict[str, Any]:
    """A stored recipe of any format as one of the newest. Raises ValueError if it is none."""
    if not isinstance(value, dict) or not all(isinstance(value.get(part), dict) for part in PARTS):
        raise ValueError(f"it lacks one of {', '.join(PARTS)}")
    number = value.get("format", 1)  # The first format had no number.
    if number not in range(1, FORMAT + 1):
        raise ValueError(f"its format is {number!r}, and the newest known here is {FORMAT}")
    return {**with_kinds(value), "format": FORMAT} if number == 1 else value


def _config(kinds: Mapping[str, type], value: Mapping[str, Any]) -> Any:
    """A part of a recipe whose type is told by its kind."""
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"it holds a kind {kind!r}, and those known here are {', '.join(kinds)}")
    return TypeAdapter(kinds[kind]).validate_python({name: field for name, field in value.items() if name != "kind"})


def _fields(value: Any, prefix: str = "") -> set[str]:
    """The names of all fields of nested JSON objects."""
    if not isinstance(value, dict):
        return {prefix}
    return set().union(*(_fields(part, f"{prefix}.{name}" if prefix else name) for name, part in value.items()))
