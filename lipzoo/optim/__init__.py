"""Optimizers, and the trust region around them."""

from lipzoo.optim.config import OptimizerConfig as OptimizerConfig
from lipzoo.optim.ebc.config import EBCConfig as EBCConfig
