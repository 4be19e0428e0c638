"""Layers that are 1-Lipschitz by how their matrices are computed, as others train them: for comparison."""

from collections.abc import Callable

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.reparametrized.aol import aol
from lipzoo.layers.reparametrized.bjorck import bjorck
from lipzoo.layers.reparametrized.cayley import cayley
from lipzoo.layers.reparametrized.cpl import cpl
from lipzoo.layers.reparametrized.sandwich import sandwich
from lipzoo.layers.reparametrized.sll import sll

REPARAMETRIZED: dict[str, Callable[..., AbstractModule]] = {
    "aol": aol,
    "bjorck": bjorck,
    "cayley": cayley,
    "cpl": cpl,
    "sll": sll,
    "sandwich": sandwich,
}
"""(out_size, in_size, *, name, share, key, bias=False) → a module with fresh raw numbers; cpl and sll keep the size."""
ACTIVE = frozenset({"cpl", "sll", "sandwich"})
"""Those with an activation inside, which takes `activation` (ReLU() or Tanh(), by default the first) as well."""
