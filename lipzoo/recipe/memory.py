"""What a run needs at the least, against what the machine has: so that the impossible is told before it is tried."""

import os
from pathlib import Path

import jax

from lipzoo.data import AbstractDataConfig
from lipzoo.models.config import AbstractModelConfig

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux tells what a container may use."""
COPIES = 3
"""Weights, their gradient, and what the optimizer remembers: all there at the end of a step."""


def host_bytes() -> int | None:
    """The memory of this machine, or the part that a container has; None where nobody tells."""
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in map(Path, LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    return min(sizes)


def device_bytes() -> int | None:
    """The memory of all devices of all processes together; CPUs have that of their machines."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        host = host_bytes()
        return None if host is None else host * jax.process_count()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return None if limit is None else limit * jax.device_count()


def memory_refusal(model: AbstractModelConfig, data: AbstractDataConfig, accum_steps: int) -> str | None:
    """Why no such run fits into memory here, or None. `accum_steps` is 0 where the parts of a batch are to fit.

    Everything that is counted is there at one moment, so what is refused cannot run; what passes may still not fit.
    """
    (_, length), classes, host, devices = data.unit, data.sizes.classes, host_bytes(), device_bytes()
    state = 4 * COPIES * model.parameters(data.sizes)
    if devices is not None and state > devices:
        return _sentence("the weights and the optimizer", state, devices, "--width or --depth")
    # A process draws the places of the whole batch (8 bytes each) and gathers its own rows.
    batch = 8 * data.batch_size + data.example_bytes * data.batch_size // jax.process_count()
    if host is not None and batch > host:
        return _sentence("a batch", batch, host, "--batch-size" + (" or --seq-len" if length > 1 else ""))
    # Without a word about parts there are as many as it takes, down to one example each.
    examples = max(data.batch_size // accum_steps, 1) if accum_steps else 1
    step = state + 4 * classes * length * examples
    # Elsewhere the scores of attention need not be all there at once.
    if jax.default_backend() == "cpu":
        step += 2 * model.scores(length)
    if devices is not None and step > devices:
        remedy = "--batch-size or --seq-len, or raise --accum-steps" if examples > 1 else "--seq-len"
        return _sentence("a step", step, devices, remedy)
    return None


def _sentence(what: str, needed: int, there: int, remedy: str) -> str:
    return f"{what} would take {needed / 2**30:,.1f} GiB of memory, and there are {there / 2**30:,.1f}: lower {remedy}"
