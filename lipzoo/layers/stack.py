"""Equal blocks in one, held and run as arrays with a leading axis."""

import dataclasses
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lipzoo.layers.base import AbstractModule, AbstractStack, Mask, check_module
from lipzoo.layers.compose import Sequential
from lipzoo.layers.product import product_p
from lipzoo.theory.balls import Balls
from lipzoo.theory.bound import Bound
from lipzoo.theory.ellipsoid import Ellipsoid
from lipzoo.theory.space import Space, SpaceError
from lipzoo.theory.steering import Steering
from lipzoo.theory.weight import Measure, Weight, map_weights, weights

Remat = Literal["none", "products", "blocks"]
SAVED = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": lambda primitive, *_, **params: primitive is product_p and not params["batch"],
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


class Stack(AbstractStack):
    """Equal blocks one after the other, held as one block whose arrays have a leading axis, and run by a scan.

    `remat` says what the backward pass computes anew: `none`; all but the `products` with weights (scores,
    activations); or everything in the `blocks`. With `none` the scan is written out, which takes longer to compile:
    what is kept need not be copied into one array of all blocks.
    """

    deviates = True
    blocks: AbstractModule
    remat: Remat = eqx.field(static=True, default="products")

    def __check_init__(self) -> None:
        check_module(self.blocks, "Stack")
        if self.remat not in SAVED:
            raise ValueError(f"remat must be one of {', '.join(SAVED)}, got {self.remat!r}")
        depths = {np.shape(weight.array)[:1] for weight in weights(self.blocks)}
        if len(depths) != 1 or not all(depths):
            raise ValueError(f"the arrays of a stack must have one leading axis, of its blocks, but have {depths}")

    @property
    def depth(self) -> int:
        """How many blocks there are: as many as the arrays hold, so none runs that is not counted."""
        return weights(self.blocks)[0].array.shape[0]

    @property
    def takes(self) -> Space | None:
        return self.block(0).takes

    def __call__(self, x: Float[Array, "*axes d"]) -> Float[Array, "*axes d"]:
        return self.masked(x, Mask())

    def masked(self, x: Float[Array, "*axes d"], mask: Mask) -> Float[Array, "*axes d"]:
        def run(x: Array, block: AbstractModule) -> tuple[Array, None]:
            return _whole(block).masked(x, mask), None

        run = jax.checkpoint(run, policy=SAVED[self.remat], prevent_cse=False)
        return jax.lax.scan(run, x, self.blocks, unroll=self.remat == "none")[0]

    def bound(self, incoming: Bound, measure: Measure) -> Bound:
        for index in range(self.depth):
            outgoing = self.block(index).bound(incoming, measure)
            if outgoing.space != incoming.space:
                raise SpaceError(f"a block of a stack was given {incoming.space} and gives {outgoing.space}")
            incoming = outgoing
        return incoming

    def spread(self, incoming: Ellipsoid, reach: Bound, steering: Steering) -> Ellipsoid:
        blocks = Sequential(self.block(index) for index in range(self.depth))
        return blocks.spread(incoming, reach, steering)

    def near(self, incoming: Balls, measure: Measure) -> Balls:
        for index in range(self.depth):
            incoming = self.block(index).near(incoming, measure)
        return incoming

    def block(self, index: int) -> AbstractModule:
        """One block, its weights named after its place."""

        def take(weight: Weight) -> Weight:
            name = f"blocks.{index}.{weight.name.removeprefix('blocks.')}"  # Certificates tell weights by name.
            return dataclasses.replace(weight, array=_take(weight.array, index), name=name)

        return map_weights(take, self.blocks)

    def matrices(self) -> list[Weight]:
        return [weight for index in range(self.depth) for weight in self.block(index).matrices()]


def _whole(block: AbstractModule) -> AbstractModule:
    """A block on every device of the mesh in use, if there is one, however it was cut up before (FSDP)."""
    in_use = not jax.sharding.get_abstract_mesh().empty
    return jax.lax.with_sharding_constraint(block, PartitionSpec()) if in_use else block


def _take(array: Any, index: int) -> Any:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
    return array[index]
