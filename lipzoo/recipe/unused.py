"""Flags that do nothing beside the others: given, they are refused, since whoever gives one expects something of it."""

from collections.abc import Callable, Mapping
from typing import Any

from lipzoo.config.fields import PREFIXED, flag, taken
from lipzoo.constraints import ConstraintName
from lipzoo.data import DataConfig
from lipzoo.models import GPTConfig, MLPConfig
from lipzoo.optim.config import takers
from lipzoo.optim.optimizers import OPTIMIZERS
from lipzoo.optim.schedules import Schedule
from lipzoo.recipe.recipe import Recipe

Condition = Callable[[Recipe], bool]
OF_EMBEDDINGS = ("embed_inflation", "embedding_adam")


def _constrained(*free: ConstraintName) -> Condition:
    """Whether some constraint in use is none of these."""
    return lambda recipe: not recipe.constraint.names() <= set(free)


def _takes(option: str) -> Condition:
    """Whether the optimizer takes this option."""
    return lambda recipe: option in taken(OPTIMIZERS[recipe.optimizer.optimizer], recipe.optimizer)


def _reads(number: str) -> Condition:
    """Whether the optimizer reads this number."""
    return lambda recipe: number in recipe.optimizer.make().numbers


def _scheduled(name: Schedule) -> Condition:
    """Whether the learning rate has this schedule."""
    return lambda recipe: recipe.optimizer.schedule == name


def _gpt(condition: Callable[[GPTConfig], bool]) -> Condition:
    return lambda recipe: isinstance(recipe.model, GPTConfig) and condition(recipe.model)


def _depth_above(depth: int) -> Condition:
    """Whether an MLP is so deep."""
    return lambda recipe: not isinstance(recipe.model, MLPConfig) or recipe.model.depth > depth


def _embeds(recipe: Recipe) -> bool:
    return recipe.model.embeds


def _augments(recipe: Recipe) -> bool:
    return not isinstance(recipe.data, DataConfig) or recipe.data.rand_augment > 0


def _normalizes(model: GPTConfig) -> bool:
    return model.norm != "none" or model.qk_norm or model.architecture == "lipsformer"


def _by_layers(recipe: Recipe) -> bool:
    return recipe.ebc.aggregate != "exact"


_capped = _constrained("none", "spectral-weight-decay", "weight-decay")


USED: Mapping[str, tuple[Condition, str]] = {
    "width": (_depth_above(1), "on an MLP of --depth 1"),
    "activation": (_depth_above(1), "on an MLP of --depth 1"),
    "residual": (_depth_above(2), "on an MLP of --depth below 3"),
    "epsilon": (_gpt(_normalizes), "without normalization (--norm, --qk-norm)"),
    "gelu_divisor": (_gpt(lambda model: model.activation == "gelu"), "without --activation gelu"),
    **dict.fromkeys(OF_EMBEDDINGS, (_embeds, "on a model without an embedding")),
    "embedding_cap": (
        lambda recipe: _embeds(recipe) and _capped(recipe),
        "on a model without an embedding, or without a cap on it",
    ),
    "sigma_max": (_capped, "where no --constraint has a cap that it sets"),
    "sigma_max_overrides": (_capped, "where no --constraint has a cap that it sets"),
    "project_dtype": (_constrained("none", "weight-decay"), "without a --constraint that computes"),
    "spectral_wd": (
        lambda recipe: "spectral-weight-decay" in recipe.constraint.names(),
        "without --constraint spectral-weight-decay",
    ),
    **{name: (_takes(name), f"without --optimizer {takers(name)}") for name in ("polynomial", "msign_dtype")},
    "momentum_start": (_reads("momentum_start"), "without --momentum-warmup"),
    "embedding_beta1": (_reads("embedding_beta1"), "without --embedding-adam"),
    "beta1": (_reads("beta1"), "with this --optimizer"),
    "beta2": (_reads("beta2"), "without --optimizer adamw or --embedding-adam"),
    "warmup_steps": (lambda recipe: recipe.optimizer.schedule != "triangular", "beside --schedule triangular"),
    **dict.fromkeys(("cooldown", "cooldown_floor"), (_scheduled("trapezoid"), "without --schedule trapezoid")),
    "peak_at": (_scheduled("triangular"), "without --schedule triangular"),
    "rand_augment_size": (_augments, "without --rand-augment"),
    "temperature": (lambda recipe: not recipe.training.certify_at, "beside --certify-at, which chooses it"),
    "margin": (lambda recipe: not recipe.training.certify_at, "beside --certify-at, which chooses it"),
    "annealing": (lambda recipe: recipe.training.loss == "annealed", "without --loss annealed"),
    "fit_lr": (lambda recipe: recipe.training.max_step_kl > 0, "without --max-step-kl"),
    "ebc.": (lambda recipe: recipe.ebc.enable, "without --ebc.enable"),
    "ebc.controller.": (lambda recipe: recipe.ebc.controller.enable, "without --ebc.controller.enable"),
    "ebc.guard.": (lambda recipe: recipe.ebc.guard.enable, "without --ebc.guard.enable"),
    "ebc.surrogate.": (lambda recipe: recipe.ebc.surrogate.enable, "without --ebc.surrogate.enable"),
    **{
        f"ebc.{name}": (_by_layers, "with --ebc.aggregate exact")
        for name in ("probe_layers", "beta_ema", "beta_huber_delta", "beta_full_sweep", "safety")
    },
}
"""When a flag does something, and what to say where it does not. A name that ends in a dot stands for a whole part."""


def unused_refusal(default: Recipe, given: Recipe) -> str | None:
    """The first flag that was given, so that `given` differs from the default there, and does nothing; or None."""
    before = named_fields(default.to_json())
    for name, value in named_fields(given.to_json()).items():
        if value != before.get(name) and value != () and (why := idle(name, given)):
            return f"{flag(name)} has no effect {why}: leave it out"
    return None


def idle(name: str, recipe: Recipe) -> str | None:
    """Why a field, named as on the command line, does nothing in this recipe; None if it does something."""
    known = (USED[part] for part in (*_parts(name), name) if part in USED)
    return next((why for does, why in known if not does(recipe)), None)


def _parts(name: str) -> list[str]:
    """ebc. and ebc.guard. of ebc.guard.floor."""
    names = name.split(".")[:-1]
    return [".".join(names[: count + 1]) + "." for count in range(len(names))]


def named_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of all parts of a recipe, named as on the command line."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            prefix = f"{name}." if name in PREFIXED else ""
            fields.update({f"{prefix}{inner}": v for inner, v in named_fields(value).items()})
        else:
            fields[name] = value
    return fields
