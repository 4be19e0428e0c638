"""The zoo: modules that carry their own Lipschitz bound."""

from lipzoo.models.attention import Attention as Attention
from lipzoo.models.gpt import GPT as GPT
from lipzoo.models.gpt import Embedding as Embedding
from lipzoo.models.gpt import GPTConfig as GPTConfig
from lipzoo.models.gpt import Stack as Stack
from lipzoo.models.layers import GELU as GELU
from lipzoo.models.layers import AbstractModule as AbstractModule
from lipzoo.models.layers import Affine as Affine
from lipzoo.models.layers import Center as Center
from lipzoo.models.layers import ConvexResidual as ConvexResidual
from lipzoo.models.layers import Flatten as Flatten
from lipzoo.models.layers import GroupSort as GroupSort
from lipzoo.models.layers import Identity as Identity
from lipzoo.models.layers import Linear as Linear
from lipzoo.models.layers import PerToken as PerToken
from lipzoo.models.layers import ReLU as ReLU
from lipzoo.models.layers import Residual as Residual
from lipzoo.models.layers import RMSNorm as RMSNorm
from lipzoo.models.layers import Scale as Scale
from lipzoo.models.layers import Sequential as Sequential
from lipzoo.models.layers import SquaredReLU as SquaredReLU
from lipzoo.models.layers import Tanh as Tanh
from lipzoo.models.mlp import MLP as MLP
from lipzoo.models.mlp import MLPConfig as MLPConfig
