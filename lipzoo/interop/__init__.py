"""Models of other libraries, and models for them. Nothing here needs PyTorch until it is used."""

from lipzoo.interop.from_layers import from_layers as from_layers
from lipzoo.interop.to_torch import to_torch as to_torch
