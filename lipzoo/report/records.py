"""What is told of a run: records of metrics, and what they are about."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Record = dict[str, Any]
Sink = Callable[[Record], None]


@dataclasses.dataclass(frozen=True)
class About:
    """What is told of a run beside its metrics.

    **Attributes:**

    - `name`, `steps`: of the run.
    - `caps`: of every weight, by name; infinite where it is free.
    - `unit`, `per_step`: what speed is counted in, and how many there are in a step.
    - `settings`: JSON, for loggers that keep them.
    - `loggers`: the names of those that are asked for.
    - `writes`: whether this process writes files; of several, one does.
    """

    name: str
    steps: int
    caps: Mapping[str, float]
    unit: str
    per_step: int
    settings: Mapping[str, Any]
    loggers: tuple[str, ...]
    writes: bool


def flat(record: Record) -> dict[str, float]:
    """A record without its step, nested names joined by a slash."""
    norms = {f"norm/{name}": value for name, value in record.get("norms", {}).items()}
    return {name: value for name, value in record.items() if name not in ("step", "norms")} | norms
