"""Meshes of devices and how arrays lie on them."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lipzoo.errors import UserError


def make_mesh(devices: int) -> Mesh:
    """A mesh of the first `devices` devices along the axis `data`."""
    available = jax.devices()
    if devices > len(available):
        platform = available[0].platform
        fake = f", or set XLA_FLAGS=--xla_force_host_platform_device_count={devices}" if platform == "cpu" else ""
        raise UserError(
            f"--mesh {devices} needs {devices} devices, but this machine has {len(available)} ({platform}): "
            f"lower --mesh{fake}"
        )
    # Auto axes: jax's default, Explicit, makes every array's sharding part of its type.
    return jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=available[:devices])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))
