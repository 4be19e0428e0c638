"""The zoo: modules that carry their own Lipschitz bound."""

from lipzoo.layers.attention import Attention as Attention
from lipzoo.models.gpt import GPT as GPT
from lipzoo.models.gpt import Embedding as Embedding
from lipzoo.models.gpt import GPTConfig as GPTConfig
from lipzoo.models.gpt import Stack as Stack
from lipzoo.layers.layers import GELU as GELU
from lipzoo.layers.layers import AbstractModule as AbstractModule
from lipzoo.layers.layers import Affine as Affine
from lipzoo.layers.layers import Center as Center
from lipzoo.layers.layers import ConvexResidual as ConvexResidual
from lipzoo.layers.layers import Flatten as Flatten
from lipzoo.layers.layers import GroupSort as GroupSort
from lipzoo.layers.layers import Identity as Identity
from lipzoo.layers.layers import Linear as Linear
from lipzoo.layers.layers import PerToken as PerToken
from lipzoo.layers.layers import ReLU as ReLU
from lipzoo.layers.layers import Residual as Residual
from lipzoo.layers.layers import RMSNorm as RMSNorm
from lipzoo.layers.layers import Scale as Scale
from lipzoo.layers.layers import Sequential as Sequential
from lipzoo.layers.layers import SquaredReLU as SquaredReLU
from lipzoo.layers.layers import Tanh as Tanh
from lipzoo.models.mlp import MLP as MLP
from lipzoo.models.mlp import MLPConfig as MLPConfig
