"""The certificate: what is proved of a model's stored weights, and how it is shown."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from lipzoo.bound import Bound, format_power, round_up_digits
from lipzoo.models import GPT, AbstractModule
from lipzoo.published import published_bound
from lipzoo.weight import Weight, cap_norm, check_names, exact_norm

STATEMENT = (
    "For all inputs x, x' {domain}: ‖f(x) - f(x')‖ ≤ L‖x - x'‖ in RMS norms, f from input to output, "
    "computed exactly with the stored weights. The rounding of the network's own forward pass is not covered."
)
TOKEN_STATEMENT = (
    "For all sequences x, x' of tokens no larger in RMS norm than {domain}: max ‖f(x) - f(x')‖ ≤ L max ‖x - x'‖ over "
    "tokens, f from (embedded) tokens to output under one attention mask, computed exactly with the stored weights. "
    "The rounding of the network's own forward pass is not covered."
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
    - `published`: the formula of the paper that the model comes from, for comparison (see `lipzoo.published`): no bound
      for transformers; None where there is none.
    - `l2_factor`: times L gives the ℓ₂ → ℓ₂ constant, √(outputs/inputs); None for sequences of tokens.
    - `statement`: what is proved.
    """

    rows: tuple[Row, ...]
    a_priori: Bound
    certified: Bound
    published: Bound | None
    l2_factor: float | None
    statement: str

    @staticmethod
    def of(
        model: AbstractModule,
        radius: float = 1.0,
        window: int | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> "Certificate":
        """The certificate of a model in memory, for inputs of RMS norm at most `radius` (1 for pixels in [0, 1]).

        `window` is the number of tokens in a sequence, which the published formula of LipsFormer wants to know; `watch`
        is called when a matrix was measured.

        **Raises:** ValueError if a weight holds NaN or infinite entries, if two weights share a name, if there are
        none, or if the radius is not positive and finite.
        """
        if not check_names(model.matrices()):
            raise ValueError("a model without weights has no certificate")
        if not 0 < radius < math.inf:
            raise ValueError(f"the radius of the inputs must be positive and finite, got {radius}")
        model = jax.tree.map(np.asarray, model)  # Blocks of a stack are then views of it.
        start, exact = Bound(radius, 0.0), _Exact(watch)
        certified = _without_nan(model.bound(start, exact))

        def share(name: str) -> float:
            return _share(certified, model.bound(start, lambda w: exact(w) ** (w.name != name)))

        matrices = model.matrices()
        rows = tuple(Row(w.name, tuple(w.array.shape), w.cap, float(np.max(exact(w))), share(w.name)) for w in matrices)
        a_priori = _without_nan(model.bound(start, cap_norm))
        published = published_bound(model, start, exact, window)
        return Certificate(rows, a_priori, certified, published, _l2_factor(model), _statement(model, radius))

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
            "published_formula": None if self.published is None else _bound_json(self.published),
            "log10_l2_lipschitz": None if self.l2_factor is None else _finite({"": self._log10_l2(self.certified)})[""],
            "method": METHOD,
            "statement": self.statement,
        }

    def _log10_l2(self, bound: Bound) -> float:
        return float(bound.log10_lipschitz) + math.log10(1 if self.l2_factor is None else self.l2_factor)

    def __rich__(self) -> Group:
        layers = Table("layer", *(_right(name) for name in ("shape", "cap", "norm", "share of log L")), title="Weights")
        for row in self.rows:
            cap = "free" if math.isinf(row.cap) else f"{row.cap:g}"
            norm = Text(round_up_digits(row.norm, 6), style="" if row.norm <= row.cap else "bold red")
            layers.add_row(row.name, "×".join(map(str, row.shape)), cap, norm, _percent(row.share))
        columns = ["L (RMS → RMS)", *([] if self.l2_factor is None else ["L (ℓ₂ → ℓ₂)"]), "largest output"]
        bounds = Table("bound", *map(_right, columns), title="Bounds")
        a_priori = "a priori (caps)" if self.caps_hold else "a priori (a cap does not hold)"
        named = {"certified": self.certified, a_priori: self.a_priori}
        if self.published is not None:
            named["published formula" if self.published == self.certified else "published formula (no bound)"] = (
                self.published
            )
        for name, bound in named.items():
            log10 = float(bound.log10_lipschitz)
            radius = format_power(math.log10(bound.radius) if bound.radius > 0 else -math.inf)
            l2 = [] if self.l2_factor is None else [format_power(self._log10_l2(bound))]
            bounds.add_row(name, format_power(log10), *l2, radius)
        return Group(layers, bounds, Text(self.statement, style="dim"))

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, markup=False, emoji=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _without_nan(bound: Bound) -> Bound:
    """What cannot be computed (as 0·∞) has no bound."""
    return Bound(*(math.inf if math.isnan(value) else value for value in (bound.radius, bound.log_lipschitz)))


def _l2_factor(model: AbstractModule) -> float | None:
    """√(outputs/inputs), by the first and the last matrix; None for sequences, whose norm is a maximum over tokens."""
    matrices = [weight.array for weight in model.matrices() if weight.role in ("hidden", "head")]
    return None if model.tokens or not matrices else math.sqrt(matrices[-1].shape[-2] / matrices[0].shape[-1])


def _statement(model: AbstractModule, radius: float) -> str:
    if not model.tokens:
        domain = "with pixels in [0, 1]" if radius == 1 else f"of RMS norm at most {radius:g}"
        return STATEMENT.format(domain=domain)
    return TOKEN_STATEMENT.format(
        domain="the largest row of the embedding" if isinstance(model, GPT) else f"{radius:g}"
    )


class _Exact:
    """`exact_norm`, each computed once: a bound may look at a weight as a whole and head by head."""

    def __init__(self, watch: Callable[[], None]):
        self._norms: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}
        self._watch = watch

    def __call__(self, weight: Weight) -> np.ndarray:
        key = (weight.name, tuple(weight.array.shape))
        if key not in self._norms:
            try:
                self._norms[key] = np.asarray(exact_norm(weight))
            except ValueError as error:
                raise ValueError(f"{weight.name}: {error}") from error
            self._watch()
        return self._norms[key]


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
