"""Caps held exactly, in float64, whatever the map that holds them in training leaves above."""

from collections.abc import Callable

import jax
import numpy as np

from lipzoo.theory.weight import Tree, Weight, exact_norm, map_weights


def seal(model: Tree, watch: Callable[[], None] = lambda: None) -> Tree:
    """`model` with every weight that exceeds its cap cut back to it exactly, by SVD in float64 on the host.

    `watch` is called before each weight.
    """

    def cut(weight: Weight) -> Weight:
        watch()
        if np.max(exact_norm(weight)) <= weight.cap:
            return weight
        matrix = np.asarray(weight.array).astype(np.float64)
        limit, shrink = weight.cap, 1e-7
        while True:  # Rounding back to the stored precision may lift the norm by some ulps.
            limit, shrink = limit * (1 - shrink), 2 * shrink
            cut = weight.geometry.cut(matrix, limit).astype(weight.array.dtype)
            sealed = weight.with_array(jax.device_put(cut, weight.array.sharding))
            if np.max(exact_norm(sealed)) <= weight.cap:
                return sealed

    return map_weights(cut, model)
