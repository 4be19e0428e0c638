"""The families of models: what a recipe calls them, the configuration of each, and what builds it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from lipzoo.layers.base import AbstractModule
from lipzoo.models.config import AbstractModelConfig
from lipzoo.models.gpt import build_gpt
from lipzoo.models.gpt_config import GPTConfig
from lipzoo.models.mlp import MLPConfig, build_mlp


class Family(NamedTuple):
    """A family of models.

    **Attributes:**

    - `config`: the type of its configurations.
    - `build`: (config, size in, size out, *, key) → a model with fresh weights, all of them free.
    """

    config: type[AbstractModelConfig]
    build: Callable[..., AbstractModule]


FAMILIES: dict[str, Family] = {
    "mlp": Family(MLPConfig, build_mlp),
    "gpt": Family(GPTConfig, build_gpt),
}


def build(config: AbstractModelConfig, in_size: int, out_size: int, *, key: PRNGKeyArray) -> Any:
    """The model of a configuration, with fresh weights, all of them free."""
    family = next(family for family in FAMILIES.values() if isinstance(config, family.config))
    return family.build(config, in_size, out_size, key=key)
