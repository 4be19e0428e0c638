"""What a bound claims, in words, and how it was found."""

import math

from lipzoo.certify.deviation import Running
from lipzoo.certify.tighten import GAIN
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import round_digits
from lipzoo.theory.space import Tokens, Vector

VECTOR_STATEMENT = (
    "For all inputs x, x' {domain}: ‖f(x) - f(x')‖ ≤ L‖x - x'‖ in RMS norms, f from input to output, "
    "computed exactly with the stored weights."
)
TOKEN_STATEMENT = (
    "For all sequences x, x' of tokens no larger in RMS norm than {domain}: max ‖f(x) - f(x')‖ ≤ L max ‖x - x'‖ over "
    "tokens, f from {start} to output under one attention mask, computed exactly with the stored weights."
)
NOT_COVERED = " The rounding of the network's own forward pass is not covered."
RUNNING = (
    " What runs in {format}, f̂, is within e = {deviation} of f(x) for all of these{tokens}: "
    "‖f̂(x) - f̂(x')‖ ≤ L‖x - x'‖ + 2e. That takes rounding to nearest, sums in any order, {total}, and functions "
    "{source}."
)
NOWHERE = " In {format} nothing is proved of what runs: numbers may overflow, or errors grow as large as they can."
METHODS = {
    "layers": "layer by layer: norms by NumPy's SVD in float64, inflated by 1 + 8·max(m, n)·2⁻⁵², rounded up",
    "ellipsoids": "ellipsoids through the layers, with multipliers for slopes, in float64 with all roundings added",
}
"""How the smallest bound was found."""


def statement(bound: Bound, running: Running | None = None) -> str:
    """What is proved, read off the bound; and of the network as it runs, where that is known."""
    return _exact(bound) + (NOT_COVERED if running is None else _running(running))


def _running(running: Running) -> str:
    if not math.isfinite(running.deviation):
        return NOWHERE.format(format=running.arithmetic.name)
    tokens = f", up to {running.tokens} tokens" if isinstance(running.bound.space, Tokens) else ""
    total = "in float64" if running.arithmetic.total < 2.0**-24 else "in float32"
    if running.arithmetic.total > 2.0**-24:
        total += ", cut off or rounded,"
    if running.arithmetic.factor:
        total += f" of factors rounded to 2^{math.log2(running.arithmetic.factor):.0f}"
    if tokens:  # Kernels that fuse attention sum up other things, in less.
        total += ", a softmax in float32 that is not fused into attention"
    return RUNNING.format(
        format=running.arithmetic.name,
        deviation=round_digits(running.deviation, 3),
        tokens=tokens,
        total=total,
        source=running.arithmetic.functions.source,
    )


def _exact(bound: Bound) -> str:
    domain = bound.domain
    radius = round_digits(float(domain.radius), 6, up=False)
    if isinstance(domain.space, Vector):
        pixels = " (as all with pixels in [0, 1])" if domain.radius == 1 else ""
        return VECTOR_STATEMENT.format(domain=f"of RMS norm at most {radius}{pixels}")
    if domain.embedded:
        rows = f"the largest row of the embedding, {radius}"
        return TOKEN_STATEMENT.format(domain=rows, start="embedded tokens")
    return TOKEN_STATEMENT.format(domain=radius, start="tokens")


def l2_factor(bound: Bound) -> float | None:
    """Times L it gives the ℓ₂ → ℓ₂ constant: √(outputs/inputs); None for sequences, measured by their tokens."""
    first, last = bound.domain.space, bound.space
    if not (isinstance(first, Vector) and isinstance(last, Vector)):
        return None
    return math.sqrt(last.size / first.size) * (1 + 2.0**-50)


def gained(certified: Bound, layerwise: Bound) -> str:
    """What ellipsoids gained over the layers one by one; nothing where there are none."""
    if l2_factor(certified) is None:
        return ""
    ratio = math.exp(min(0.0, float(certified.log_lipschitz) - float(layerwise.log_lipschitz)))
    if ratio > 1 - GAIN or math.isnan(ratio):
        return "Ellipsoids gain nothing here: the layers one by one are as good. "
    return f"Ellipsoids through the layers gave {round_digits(ratio, 3)} of the bound of the layers one by one. "
