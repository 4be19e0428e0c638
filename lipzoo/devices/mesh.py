"""Meshes of devices, how arrays lie on them, and matrices that are worked on one by one, each on its own device.

A mesh has the axes `data` and `fsdp`. Every device takes part of each batch. Weights and optimizer states are stored in
equal parts on all devices (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054); forward and backward see them whole along
`data`, gathered once a step, and gather what lies on `fsdp` block by block.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from lipzoo.system.errors import UserError

AXES = ("data", "fsdp")
RUNS = "runs"
"""The axis, beside these, over which many runs at once are dealt out."""
Matrices = Float[Array, "*batch m n"]


def mesh_shape(text: str) -> tuple[int, int] | None:
    """(data, fsdp) of `8` or `4x2`; None for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text)
    return None if match is None else (int(match[1]), int(match[2] or 1))


def make_mesh(text: str = "1") -> Mesh:
    """A mesh of the first devices, or of all devices of all processes. Raises UserError if there are too few."""
    shape = mesh_shape(text) or (1, 1)
    needed, available = math.prod(shape), jax.devices()
    if needed > len(available):
        platform = available[0].platform
        fake = f", or set XLA_FLAGS=--xla_force_host_platform_device_count={needed}" if platform == "cpu" else ""
        raise UserError(
            f"--mesh {text} needs {needed} devices, but there are {len(available)} ({platform}): lower --mesh{fake}"
        )
    if jax.process_count() > 1 and needed < len(available):
        raise UserError(f"--mesh {text} must take all {len(available)} devices of the {jax.process_count()} processes")
    # Auto axes: jax's default, Explicit, makes every array's sharding part of its type.
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 2, devices=available[:needed])


def runs_mesh(devices: int) -> Mesh:
    """So many devices for runs at once, each of which is on one of them."""
    return jax.make_mesh((devices, 1, 1), (RUNS, *AXES), (AxisType.Auto,) * 3, devices=jax.devices()[:devices])


def sharing(mesh: Mesh) -> int:
    """How many devices share one run."""
    return math.prod(mesh.shape[axis] for axis in AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def process_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of a batch that lie on this process's devices."""
    parts = [index[0] for index in batched(mesh).addressable_devices_indices_map((batch_size,)).values() if index]
    return slice(min(part.start or 0 for part in parts), max(part.stop or batch_size for part in parts))


def place(batch: dict[str, Shaped[np.ndarray, "rows ..."]], mesh: Mesh) -> dict[str, Array]:
    """A batch on the devices, from this process's rows of it."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(batched(mesh), rows), batch)


def stored(mesh: Mesh, tree: Any) -> Any:
    """How each array of a state is stored: its largest axis split over all devices, if they divide one."""
    return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x.shape, sharing(mesh), AXES)), tree)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """How forward and backward see each weight: split over `fsdp` alone."""
    return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x.shape, sharing(mesh), AXES[1:])), tree)


def _spec(shape: tuple[int, ...], devices: int, axes: tuple[str, ...]) -> PartitionSpec:
    axis = _split_axis(shape, devices)
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, axes)


def _split_axis(shape: tuple[int, ...], devices: int) -> int | None:
    """The largest axis that so many devices divide, the last of several, if there is one."""
    divided = [axis for axis, size in enumerate(shape) if size % devices == 0]
    return max(divided, key=lambda axis: (shape[axis], axis), default=None)


def spread(mesh: Mesh, function: Callable[..., Matrices]) -> Callable[..., Matrices]:
    """`function` of batches of matrices, which treats each by itself, with the matrices dealt out to all devices.

    A stack of matrices is stored cut through every matrix. For Newton-Schulz iterations that would mean a sum over all
    devices at every product, or the whole stack on every device; so the parts change places (an all-to-all), each
    device works on whole matrices of its own, and the results go back. Stacks are filled up with zero matrices to a
    multiple of the devices. A single matrix stays as it is stored.
    """

    def dealt(*matrices: Matrices) -> Matrices:
        shape = matrices[0].shape
        devices = sharing(mesh)
        axis = _split_axis(shape, devices)
        if devices == 1 or len(shape) == 2 or (axis is not None and axis < len(shape) - 2):
            return function(*matrices)
        count = math.prod(shape[:-2])
        flat = (jnp.pad(x.reshape(count, *shape[-2:]), ((0, -count % devices), (0, 0), (0, 0))) for x in matrices)
        result = function(*(jax.lax.with_sharding_constraint(x, batched(mesh)) for x in flat))
        result = jax.lax.with_sharding_constraint(result, batched(mesh))
        back = PartitionSpec() if axis is None else PartitionSpec(*[None] * (axis - len(shape) + 3), AXES)
        return jax.lax.with_sharding_constraint(result, NamedSharding(mesh, back))[:count].reshape(shape)

    return dealt
