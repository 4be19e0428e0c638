"""The families of models: what a recipe calls them, the configuration of each, and what builds it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from lipzoo.data.config import Sizes
from lipzoo.layers.base import AbstractModule
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.gpt import build_gpt
from lipzoo.models.gpt_config import GPTConfig
from lipzoo.models.mlp import MLPConfig, build_mlp
from lipzoo.models.shiftnet import ShiftNetConfig, build_shiftnet


class Family(NamedTuple):
    """A family of models.

    **Attributes:**

    - `config`: the type of its configurations.
    - `build`: (config, sizes, *, key) → a model with fresh weights, all of them free.
    """

    config: type[AbstractModelConfig]
    build: Callable[..., AbstractModule]


FAMILIES: dict[str, Family] = {
    "mlp": Family(MLPConfig, build_mlp),
    "gpt": Family(GPTConfig, build_gpt),
    "shiftnet": Family(ShiftNetConfig, build_shiftnet),
}


def build(config: AbstractModelConfig, sizes: Sizes, *, key: PRNGKeyArray) -> Any:
    """The model of a configuration, with fresh weights, all of them free."""
    family = next(family for family in FAMILIES.values() if isinstance(config, family.config))
    return family.build(config, sizes, key=key)
