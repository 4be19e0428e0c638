"""Optimizers as optax chains, with the norm that one step can have."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lipzoo.config.fields import options
from lipzoo.config.overrides import number, override
from lipzoo.config.ranges import NonNegative, Positive, Range, Whole
from lipzoo.optim.hyper import Hyper, Number, rounded_down
from lipzoo.optim.hyper import number as as_number
from lipzoo.optim.muon import Spread, scale_by_muon, update_sup
from lipzoo.optim.schedules import Factor, Schedule, schedule
from lipzoo.theory.msign import POLYNOMIALS, PolynomialName
from lipzoo.theory.weight import Tree, Weight, map_weights

LR_FLAG = "--lr-overrides"
BETAS = ("beta1", "beta2", "momentum_start", "embedding_beta1")
NUMBERS = ("lr", "lr_overrides", "weight_decay", *BETAS)
"""Settings in which runs of one compiled step may differ."""
Beta = Annotated[float, Range(0, 0.99999)]
"""Beyond its upper end 1 - β loses its digits in float32."""


@options
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The part of a recipe that describes the optimizer."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: orthogonalized momentum, whose step has a known norm; adamw: Adam without bias correction."""
    lr: Positive = 0.1
    """Peak learning rate. Muon's step moves a layer by lr × its share in RMS→RMS norm."""
    lr_overrides: tuple[str, ...] = ()
    """LAYER=RATE pairs: learning rates of single layers, instead of --lr times their share; LAYER may be a pattern."""
    beta1: Beta = 0.9
    """Momentum."""
    momentum_start: Beta = 0.85
    """Momentum of muon's first step where there is a --momentum-warmup."""
    momentum_warmup: Whole = 0
    """Steps over which muon's momentum rises linearly from --momentum-start to --beta1."""
    embedding_adam: bool = False
    """Move the embedding by Adam, under muon for all others."""
    embedding_beta1: Beta = 0.8
    """Momentum of the embedding's Adam."""
    beta2: Beta = 0.95
    """Second-moment decay of AdamW."""
    weight_decay: NonNegative = 0.0
    """λ: each step multiplies a weight by 1 - λ·lr·share first."""
    nesterov: bool = False
    """Nesterov momentum, for muon."""
    polynomial: PolynomialName = "six-row"
    """Orthogonalizing polynomial of muon."""
    msign_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of muon's orthogonalization."""
    embed_inflation: Annotated[float, Range(1)] = 16.0
    """Largest factor by which muon enlarges the momentum of a rare token's embedding."""
    schedule: Schedule = "linear"
    """Shape of the learning rate over the steps."""
    warmup_steps: Whole = 0
    """Steps over which the learning rate first rises linearly."""

    def update_sup(self, weight: Weight) -> float:
        """The largest RMS→RMS norm of a weight's update per unit of lr × share; infinite where it is not known."""
        return math.inf if self._by_adam(weight) else update_sup(POLYNOMIALS[self.polynomial])

    def _by_adam(self, weight: Weight) -> bool:
        return self.optimizer == "adamw" or (self.embedding_adam and weight.place == "embedding")

    def shares(self, tree: Tree) -> Tree:
        """`tree` with the shares that make the learning rates of `lr_overrides`."""

        def share(weight: Weight) -> Weight:
            rate = override(self.lr_overrides, weight.name)
            return weight if rate is None else dataclasses.replace(weight, share=number(rate, LR_FLAG) / self.lr)

        return map_weights(share, tree)

    def structure(self) -> "OptimizerConfig":
        """This without what a compiled step takes from its `Hyper`; of the decay, whether there is one at all."""
        like = OptimizerConfig(weight_decay=float(self.weight_decay > 0))
        return dataclasses.replace(self, **{name: getattr(like, name) for name in NUMBERS})

    def hyper(
        self,
        shares: Mapping[str, float],
        caps: Mapping[str, float] | None = None,
        *,
        temperature: float = 1.0,
        target_kl: float = 1.0,
    ) -> Hyper:
        """What a compiled step takes as arguments, for weights of these shares and caps (by default without caps)."""
        numbers = {name: getattr(self, name) for name in ("lr", *BETAS)}
        numbers |= {"decay": self.weight_decay, "temperature": temperature, "target_kl": target_kl}
        return Hyper(
            **{name: as_number(value) for name, value in numbers.items()},
            caps={name: rounded_down(math.inf if caps is None else caps[name]) for name in shares},
            shares={name: as_number(share) for name, share in shares.items()},
        )

    def conflict(self, steps: int) -> str | None:
        """Which settings do not go together, or None."""
        if self.warmup_steps >= steps:
            return f"--warmup-steps must be below --steps {steps}, got {self.warmup_steps}"
        if self.polynomial == "polar-express" and self.msign_dtype == "bfloat16":
            return "--polynomial polar-express diverges in bfloat16: choose another, or --msign-dtype float32"
        for name in ("nesterov", "momentum_warmup", "embedding_adam", "lr_overrides"):
            if getattr(self, name) and self.optimizer != "muon":
                return f"--{name.replace('_', '-')} is for --optimizer muon"
        return None

    def build(
        self,
        clip: optax.GradientTransformationExtraArgs | None = None,
        spread: Spread = lambda function: function,
    ) -> optax.GradientTransformationExtraArgs:
        """gradients → updates for a learning rate of -1: muon is share-scaled, and so is the decay of both.

        `clip` comes between the optimizer and the decay. Arguments beyond optax's three are for it. `spread` lets
        several devices share muon's iterations (see `lipzoo.devices.mesh.spread`).
        """
        decay = [_add_decay()] if self.weight_decay else []
        decay = decay if clip is None else [clip, *decay]
        if self.optimizer == "adamw":
            return optax.chain(_scale_by_adam(lambda hyper: hyper.beta1), *decay)
        muon = scale_by_muon(
            POLYNOMIALS[self.polynomial],
            beta=self._momentum,
            nesterov=self.nesterov,
            dtype=jnp.dtype(self.msign_dtype),
            embed_inflation=self.embed_inflation,
            spread=spread,
        )
        if self.embedding_adam:
            adam = _scale_by_adam(lambda hyper: hyper.embedding_beta1)
            muon = optax.partition({True: adam, False: muon}, functools.partial(map_weights, self._by_adam))
        return optax.chain(muon, _scale_by_share(), *decay)

    def _momentum(self, hyper: Hyper, clock: Int[Array, ""]) -> Number:
        """β after so many steps."""
        if not self.momentum_warmup:
            return hyper.beta1
        progress = jnp.minimum(clock.astype(jnp.float32) / self.momentum_warmup, 1)
        return hyper.momentum_start + progress * (hyper.beta1 - hyper.momentum_start)

    def factor(self, steps: int) -> Factor:
        """The learning rate as a fraction of its peak."""
        return schedule(self.schedule, steps, self.warmup_steps)


def _stateless(update: Callable[[Any, Any, Hyper], Any]) -> optax.GradientTransformationExtraArgs:
    """A transformation of updates, given the weights and `hyper`, that remembers nothing."""

    def transform(updates: Any, state: Any, params: Any = None, *, hyper: Hyper, **others: Any) -> tuple[Any, Any]:
        return update(updates, params, hyper), state

    untyped: Any = transform  # optax's type of it does not know arguments that have to be given.
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), untyped)


def _scale_by_share() -> optax.GradientTransformationExtraArgs:
    """Multiplies each update by its weight's share."""
    return _stateless(
        lambda updates, _, hyper: map_weights(lambda u: u.with_array(u.array * hyper.shares[u.name]), updates)
    )


def _add_decay() -> optax.GradientTransformationExtraArgs:
    """Adds λ·share·W to each update."""

    def add(updates: Any, params: Any, hyper: Hyper) -> Any:
        rates = {name: hyper.decay * share for name, share in hyper.shares.items()}
        return map_weights(lambda u, w: u.with_array(u.array + rates[w.name] * w.array), updates, params)

    return _stateless(add)


def _scale_by_adam(beta1: Callable[[Hyper], Number]) -> optax.GradientTransformationExtraArgs:
    """m/(√v + 1e-12) without bias correction: optax's Adam, told that it has run for ever."""

    def init(params: Any) -> Any:
        state: Any = optax.scale_by_adam().init(params)
        return state._replace(count=jnp.full_like(state.count, jnp.iinfo(jnp.int32).max))

    def update(updates: Any, state: Any, params: Any = None, *, hyper: Hyper, **others: Any) -> tuple[Any, Any]:
        b1, b2 = (jnp.asarray(beta) for beta in (beta1(hyper), hyper.beta2))
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power.
            return optax.scale_by_adam(b1, b2, eps=1e-12).update(updates, state, params)  # pyright: ignore

    transform: Any = update
    return optax.GradientTransformationExtraArgs(init, transform)
