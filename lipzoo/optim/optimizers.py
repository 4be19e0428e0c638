"""The optimizers that recipes can name."""

from typing import TYPE_CHECKING, Literal

from lipzoo.optim.adam import AdamW
from lipzoo.optim.base import Optimizer
from lipzoo.optim.muon import Muon

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "muon": Muon,
    "adamw": AdamW,
}

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]
