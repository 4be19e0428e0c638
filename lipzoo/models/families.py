"""The families of models: what a recipe calls them, the configuration of each, and what builds it."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PRNGKeyArray

from lipzoo.layers.base import AbstractModule
from lipzoo.models.gpt import build_gpt
from lipzoo.models.gpt_config import GPTConfig
from lipzoo.models.mlp import MLPConfig, build_mlp

ModelConfig = MLPConfig | GPTConfig
FAMILIES: Mapping[str, type] = {"mlp": MLPConfig, "gpt": GPTConfig}
BUILDERS: Mapping[type, Callable[..., AbstractModule]] = {MLPConfig: build_mlp, GPTConfig: build_gpt}


def build(config: ModelConfig, in_size: int, out_size: int, *, key: PRNGKeyArray) -> Any:
    """The model of a configuration, with fresh weights, all of them free."""
    return BUILDERS[type(config)](config, in_size, out_size, key=key)
