"""The certificate: what is proved of a model's stored weights, and how it is shown."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console, Group
from rich.text import Text

from lipzoo.certify.deviation import Running, running
from lipzoo.certify.fields import bound_json, finite, running_json
from lipzoo.certify.measured import ExactNorms, place_of, table_rows
from lipzoo.certify.published import published_bound
from lipzoo.certify.row import Row
from lipzoo.certify.statement import METHODS, gained, l2_factor, statement
from lipzoo.certify.tighten import smallest, tightest
from lipzoo.layers.base import check_module
from lipzoo.models import AbstractModule
from lipzoo.report import page
from lipzoo.report.tables import terminal_table
from lipzoo.theory.bound import Bound
from lipzoo.theory.numbers import Scalar, format_power, round_digits
from lipzoo.theory.runs import Arithmetic
from lipzoo.theory.space import Space, SpaceError, Symbols, Vector, example_shape
from lipzoo.theory.weight import Weight, cap_norm, check_names, weights

SCHEMA = 1
"""The version of certificate.json (docs/schema.md)."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Upper bounds on a model's Lipschitz constant and output.

    **Attributes:**

    - `rows`: one per weight.
    - `a_priori`: the bound from the caps alone, before training; true as long as every cap holds (`caps_hold`).
    - `certified`: the smallest bound that was found from the stored weights.
    - `layerwise`: the bound from their float64 norms, one layer after the other; `rows` are about this.
    - `published`: the formula of the paper that the model comes from, for comparison (see `lipzoo.certify.published`):
      no bound for transformers; None where there is none.
    - `running`: the network in the arithmetic that it runs in; None where rounding is not covered.
    - `steps`: what is proved of steps by the recipe; empty where nothing is.

    What they are about (`statement`, `l2_factor`) is read off the bounds, which know their spaces."""

    rows: tuple[Row, ...]
    a_priori: Bound
    certified: Bound
    layerwise: Bound
    published: Bound | None
    running: Running | None = None
    steps: str = ""

    @staticmethod
    def of(
        model: AbstractModule,
        radius: float = 1.0,
        window: int | None = None,
        space: Space | None = None,
        watch: Callable[[int, int], None] = lambda done, count: None,
        tighten: int = 0,
        norms: ExactNorms | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> "Certificate":
        """The certificate of a model in memory, for inputs of norm at most `radius` (1 for pixels in [0, 1]).

        `space` is what the model takes (`lipzoo.space`); models of this library know it themselves. `window` is the
        number of tokens in a sequence, which the published formula of LipsFormer wants to know; `watch` is told how
        many weights were measured, and of how many. Of networks of vectors an ellipsoid is taken through the layers
        too (`lipzoo.theory.ellipsoid`), and made smaller by up to `tighten` steps of a search; 60 of them gain most.
        Norms come from `norms`, and stay there for whoever needs them again. Of a network that runs in an `arithmetic`
        (`lipzoo.theory.functions.arithmetic`) it is also said how far that can be from what is meant, of sequences for
        up to `window` tokens.

        **Raises:** TypeError if it is no model of this library; ValueError if a weight holds NaN or infinite entries,
        if two weights share a name, if there are none, if the radius is not positive and finite, or if a part of the
        model is given what it does not take.
        """
        check_module(model, "a certificate")
        if not check_names(model.matrices()):
            raise ValueError("a model without weights has no certificate")
        if not 0 < radius < math.inf:
            raise ValueError(f"the radius of the inputs must be positive and finite, got {radius}")
        start = Bound.start(_space(model, space), radius)
        model = jax.tree.map(np.asarray, model)  # Blocks of a stack are then views of it.
        known = {place_of(weight): weight for weight in model.matrices()}

        def cap(weight: Weight) -> Scalar:
            known[place_of(weight)] = weight
            return cap_norm(weight)

        a_priori = model.bound(start, cap)
        exact = ExactNorms() if norms is None else norms
        exact.watch = lambda done: watch(done, len(known))
        layerwise = model.bound(start, exact)
        _check_runs(model, start.space, layerwise)
        found = [ellipsoid.lipschitz for ellipsoid, _ in tightest(model, start, exact, steps=tighten)]
        certified = smallest(layerwise, found)

        def share(name: str) -> float:
            return _share(layerwise, model.bound(start, lambda w: exact(w) ** (w.name != name)))

        places = table_rows(model.matrices(), exact.measured)
        rows = tuple(
            Row(w.name, tuple(w.array.shape), cap, float(np.max(exact(w))), functools.partial(share, w.name))
            for w, cap in ((w, known.get(place_of(w), w).cap) for w in places)  # That by which the bound was made.
        )
        published = published_bound(model, start, layerwise, exact, window)
        exact.watch = lambda done: None  # Whoever watched may be gone when norms are asked for again.
        if arithmetic is not None and not window and not isinstance(start.space, Vector):
            raise ValueError("rounding depends on how many tokens a sequence has: give window, the most there are")
        runs = None if arithmetic is None else running(model, start, exact, arithmetic, window or 1)
        return Certificate(rows, a_priori, certified, layerwise, published, runs)

    @property
    def l2_factor(self) -> float | None:
        """Times L it gives the ℓ₂ → ℓ₂ constant: √(outputs/inputs); None for sequences, measured by their tokens."""
        return l2_factor(self.certified)

    @property
    def statement(self) -> str:
        """What is proved, read off the bound."""
        return statement(self.certified, self.running)

    @property
    def lipschitz(self) -> float:
        """The certified RMS → RMS Lipschitz constant; infinite where float64 overflows."""
        return float(self.certified.lipschitz)

    @property
    def method(self) -> str:
        """How the certified bound was found."""
        return METHODS["layers" if self.certified is self.layerwise else "ellipsoids"]

    @property
    def caps_hold(self) -> bool:
        """Whether every weight is under its cap, so that the a-priori bound is true of these weights."""
        return all(row.norm <= row.cap for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; infinite numbers are null."""
        return {
            "schema": SCHEMA,
            "rows": [finite(row.to_json()) for row in self.rows],
            "certified": bound_json(self.certified),
            "layerwise": bound_json(self.layerwise),
            "a_priori": bound_json(self.a_priori) | {"caps_hold": self.caps_hold},
            "published_formula": None if self.published is None else bound_json(self.published),
            "lipschitz_l2": None if self.l2_factor is None else finite({"": self.lipschitz * self.l2_factor})[""],
            "log10_l2_lipschitz": None if self.l2_factor is None else finite({"": self._log10_l2(self.certified)})[""],
            "arithmetic": None if self.running is None else running_json(self.running),
            "method": self.method,
            "statement": self.statement,
        }

    def _log10_l2(self, bound: Bound) -> float:
        return float(bound.log10_lipschitz) + math.log10(1 if self.l2_factor is None else self.l2_factor)

    @property
    def weight_columns(self) -> dict[str, list[str]]:
        """The table of weights."""
        rows = self.rows
        return {
            "layer": [row.name for row in rows],
            "shape": ["×".join(map(str, row.shape)) for row in rows],
            "cap": ["free" if math.isinf(row.cap) else f"{row.cap:g}" for row in rows],
            "norm": [round_digits(row.norm, 6) + ("" if row.norm <= row.cap else " (above)") for row in rows],
            "share of log L": [_percent(row.share) for row in rows],
        }

    @property
    def bound_columns(self) -> dict[str, list[str]]:
        """The table of bounds."""
        named = {"certified": self.certified}
        if self.certified is not self.layerwise:
            named["certified, layer by layer"] = self.layerwise
        named["a priori (caps)" if self.caps_hold else "a priori (a cap does not hold)"] = self.a_priori
        if self.published is not None:
            sound = self.published is self.layerwise
            named["published formula" if sound else "published formula (no bound)"] = self.published
        columns = {"bound": list(named)}
        columns["L (RMS → RMS)"] = [format_power(bound.log10_lipschitz) for bound in named.values()]
        if self.l2_factor is not None:
            columns["L (ℓ₂ → ℓ₂)"] = [format_power(self._log10_l2(bound)) for bound in named.values()]
        return columns | {"largest output": [format_power(bound.log10_radius) for bound in named.values()]}

    @property
    def told(self) -> str:
        """What stands below the tables."""
        return gained(self.certified, self.layerwise) + self.statement + self.steps

    def __rich__(self) -> Group:
        tables = terminal_table(self.weight_columns, "Weights"), terminal_table(self.bound_columns, "Bounds")
        return Group(*tables, Text(self.told, style="dim"))

    def _repr_html_(self) -> str:
        tables = page.table(self.weight_columns, "Weights"), page.table(self.bound_columns, "Bounds")
        return "".join((*tables, page.note(self.told)))

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, markup=False, emoji=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def _space(model: AbstractModule, given: Space | None) -> Space:
    """What a model takes, by itself or as given."""
    space = given or model.takes
    if space is None:
        name = type(model).__name__
        raise ValueError(
            f"{name} does not say what it takes: give space=lipzoo.space.Vector((entries,)) or "
            f"lipzoo.space.Tokens(entries), or give {name} a property `takes` that returns it"
        )
    return space


def _check_runs(model: AbstractModule, space: Space, bound: Bound) -> None:
    """Raises SpaceError unless what the model really gives is of the kind that its bound speaks of."""
    dtype = jnp.int32 if isinstance(space, Symbols) else weights(model)[0].array.dtype
    dtype = jnp.asarray(np.zeros((), dtype)).dtype  # As jax has it: without 64 bits, unless they were asked for.
    example = jax.ShapeDtypeStruct(example_shape(space), dtype)
    image = jax.eval_shape(lambda model, x: model(x), model, example)
    if image.shape != example_shape(bound.space):
        raise SpaceError(f"{type(model).__name__} gives shape {image.shape} where its bound speaks of {bound.space}")


def _share(certified: Bound, without: Bound) -> float:
    """The part of log L that goes when a norm is set to 1; NaN where it has no meaning (L = 0, 1 or ∞)."""
    log_lipschitz = float(certified.log_lipschitz)
    if not math.isfinite(log_lipschitz) or abs(log_lipschitz) < 1e-9:
        return math.nan
    return (log_lipschitz - float(without.log_lipschitz)) / log_lipschitz


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{round(100 * share, 1) + 0.0:.1f}%"  # Adding 0 makes -0 a 0.
