"""SDP-based Lipschitz layers (Araujo et al. 2023, arXiv 2303.03169)."""

from jaxtyping import PRNGKeyArray

from lipzoo.layers.base import AbstractModule
from lipzoo.layers.reparametrized.aol import AOL
from lipzoo.layers.reparametrized.base import RELU, Potential, check_square, column, raw


def sll(
    out_size: int,
    in_size: int,
    *,
    name: str,
    share: float,
    key: PRNGKeyArray,
    bias: bool = False,
    activation: AbstractModule = RELU,
) -> Potential:
    """x ↦ x - 2Qᵀφ(Qx + b) with an almost orthogonal Q, orthogonal at first.

    Published is x - 2WT⁻¹φ(Wᵀx + b) with T = diag(Σⱼ|WᵀW|ᵢⱼqⱼ/qᵢ) and free q > 0. With ReLU both are the same maps:
    φ(cz) = cφ(z) for c > 0 takes WT⁻¹φ(Wᵀx + b) to Qᵀφ(Qx + T^(-½)b), Q = (WT^(-½))ᵀ, and with W' = W·diag(q) the
    column i of W'T'^(-½), T' = diag(Σⱼ|W'ᵀW'|ᵢⱼ), is qᵢwᵢ/√(Σⱼqᵢqⱼ|WᵀW|ᵢⱼ), that of WT^(-½): q is the lengths of rows
    of the raw numbers here. With tanh φ is steepest at other sizes of its input.

    **Raises:** ValueError unless sizes are equal and φ has slopes in [0, 1].
    """
    check_square(out_size, in_size, name)
    weight = raw(key, out_size, in_size, name, share, AOL)
    return Potential(weight, column(out_size, name, share, bias), activation)
