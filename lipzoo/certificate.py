"""The certificate: what is proved of a model's stored weights, and how it is shown."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from lipzoo.bound import Bound, format_power
from lipzoo.models import AbstractModule
from lipzoo.weight import Weight, cap_norm, exact_norm, weights

STATEMENT = (
    "For all inputs x, x' with pixels in [0, 1]: ‖f(x) - f(x')‖ ≤ L‖x - x'‖ in RMS norms, f from pixels to logits, "
    "computed exactly with the stored weights. The rounding of the network's own forward pass is not covered."
)
METHOD = "NumPy SVD in float64, inflated by 1 + 8·max(m, n)·2⁻⁵²; layer by layer, rounded up"


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight in a certificate. `share` is the part of log L that the bound would lose if the norm were 1."""

    name: str
    shape: tuple[int, ...]
    cap: float
    norm: float
    share: float


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Upper bounds on a model's Lipschitz constant and output.

    **Attributes:**

    - `rows`: one per weight.
    - `a_priori`: the bound from the caps alone, before training; true as long as every cap holds (`caps_hold`).
    - `certified`: the bound from the float64 norms of the weights.
    - `published`: the formula of Newhouse et al. 2025, for comparison; for MLPs it coincides with the certified bound.
    - `l2_factor`: times L gives the ℓ₂ → ℓ₂ constant, √(outputs/inputs).
    """

    rows: tuple[Row, ...]
    a_priori: Bound
    certified: Bound
    published: Bound
    l2_factor: float

    @staticmethod
    def of(model: AbstractModule, radius: float = 1.0) -> "Certificate":
        """The certificate of a model in memory, for inputs of RMS norm at most `radius` (1 for pixels in [0, 1]).

        **Raises:** ValueError if a weight holds NaN or infinite entries.
        """
        measured = {weight.name: _finite_norm(weight) for weight in weights(model)}
        start = Bound(radius, 0.0)

        def bound(norms: Mapping[str, float]) -> Bound:
            return model.bound(start, lambda weight: norms[weight.name])

        certified = bound(measured)
        matrices = weights(model)
        rows = tuple(
            Row(
                w.name,
                tuple(w.array.shape),
                w.cap,
                measured[w.name],
                _share(certified, bound(measured | {w.name: 1.0})),
            )
            for w in matrices
        )
        l2_factor = math.sqrt(matrices[-1].array.shape[-2] / matrices[0].array.shape[-1])
        return Certificate(rows, model.bound(start, cap_norm), certified, certified, l2_factor)

    @property
    def lipschitz(self) -> float:
        """The certified RMS → RMS Lipschitz constant; infinite where float64 overflows."""
        return float(self.certified.lipschitz)

    @property
    def caps_hold(self) -> bool:
        """Whether every weight is under its cap, so that the a-priori bound is true of these weights."""
        return all(row.norm <= row.cap for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; infinite numbers are null."""
        return {
            "rows": [_finite(dataclasses.asdict(row)) for row in self.rows],
            "certified": _bound_json(self.certified),
            "a_priori": _bound_json(self.a_priori) | {"caps_hold": self.caps_hold},
            "published_formula": _bound_json(self.published),
            "log10_l2_lipschitz": _finite({"": self.certified.log10_lipschitz + math.log10(self.l2_factor)})[""],
            "method": METHOD,
            "statement": STATEMENT,
        }

    def __rich__(self) -> Group:
        layers = Table("layer", *(_right(name) for name in ("shape", "cap", "norm", "share of log L")), title="Weights")
        for row in self.rows:
            cap = "free" if math.isinf(row.cap) else f"{row.cap:g}"
            norm = Text(f"{row.norm:.6g}", style="" if row.norm <= row.cap else "bold red")
            layers.add_row(row.name, "×".join(map(str, row.shape)), cap, norm, _percent(row.share))
        bounds = Table(
            "bound", *(_right(name) for name in ("L (RMS → RMS)", "L (ℓ₂ → ℓ₂)", "largest output")), title="Bounds"
        )
        a_priori = "a priori (caps)" if self.caps_hold else "a priori (a cap does not hold)"
        for name, bound in (
            ("certified", self.certified),
            (a_priori, self.a_priori),
            ("published formula", self.published),
        ):
            log10 = float(bound.log10_lipschitz)
            radius = format_power(math.log10(bound.radius) if bound.radius > 0 else -math.inf)
            bounds.add_row(name, format_power(log10), format_power(log10 + math.log10(self.l2_factor)), radius)
        return Group(layers, bounds, Text(STATEMENT, style="dim"))

    def __str__(self) -> str:
        console = Console(width=100, no_color=True)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _finite_norm(weight: Weight) -> float:
    try:
        return exact_norm(weight)
    except ValueError as error:
        raise ValueError(f"{weight.name}: {error}") from error


def _share(certified: Bound, without: Bound) -> float:
    """The part of log L that goes when a norm is set to 1; NaN where it has no meaning (L = 0, 1 or ∞)."""
    log_lipschitz = float(certified.log_lipschitz)
    if not math.isfinite(log_lipschitz) or abs(log_lipschitz) < 1e-9:
        return math.nan
    return (log_lipschitz - float(without.log_lipschitz)) / log_lipschitz


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def _right(name: str) -> Column:
    return Column(name, justify="right")


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null stands for it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _bound_json(bound: Bound) -> dict[str, Any]:
    values = {"lipschitz": bound.lipschitz, "log10_lipschitz": bound.log10_lipschitz, "radius": bound.radius}
    return _finite({name: float(value) for name, value in values.items()})
