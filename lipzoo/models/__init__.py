"""The zoo: modules that carry their own Lipschitz bound."""

from lipzoo.layers.activation import GELU as GELU
from lipzoo.layers.activation import Identity as Identity
from lipzoo.layers.activation import ReLU as ReLU
from lipzoo.layers.activation import SquaredReLU as SquaredReLU
from lipzoo.layers.activation import Tanh as Tanh
from lipzoo.layers.attention import Attention as Attention
from lipzoo.layers.base import AbstractModule as AbstractModule
from lipzoo.layers.compose import ConvexResidual as ConvexResidual
from lipzoo.layers.compose import PerToken as PerToken
from lipzoo.layers.compose import Residual as Residual
from lipzoo.layers.compose import Sequential as Sequential
from lipzoo.layers.embedding import Embedding as Embedding
from lipzoo.layers.linear import Affine as Affine
from lipzoo.layers.linear import Flatten as Flatten
from lipzoo.layers.linear import Linear as Linear
from lipzoo.layers.linear import Scale as Scale
from lipzoo.layers.normalization import Center as Center
from lipzoo.layers.normalization import RMSNorm as RMSNorm
from lipzoo.layers.sorting import GroupSort as GroupSort
from lipzoo.layers.stack import Stack as Stack
from lipzoo.models.gpt import GPT as GPT
from lipzoo.models.gpt_config import GPTConfig as GPTConfig
from lipzoo.models.mlp import MLP as MLP
from lipzoo.models.mlp import MLPConfig as MLPConfig
