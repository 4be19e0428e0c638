"""Runs of several processes: how they find each other, agree, and end together."""

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lipzoo.config.fields import field_refusal, options
from lipzoo.config.ranges import Count, Range, Whole
from lipzoo.system.errors import UserError

T = TypeVar("T")
LONGEST_WAIT = 1_000_000
"""Seconds that timers take on every system."""
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
"""Set by srun, for each of the processes that it starts."""


@options
@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The processes of a run. All of them see the same run directory. Under SLURM's srun nothing needs to be said."""

    coordinator: str = ""
    """HOST:PORT of process 0, which all --processes connect to."""
    processes: Count = 1
    """Processes that train together, each started with the same command but for its --process-id."""
    process_id: Whole = 0
    """Number of this process, from 0."""
    coordinator_timeout: Annotated[int, Range(1, LONGEST_WAIT)] = 60
    """Seconds to wait for the other processes."""

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        if self.process_id >= self.processes:
            return f"--process-id must lie between 0 and --processes - 1, got {self.process_id} of {self.processes}"
        host, _, port = self.coordinator.rpartition(":")
        if self.processes > 1 and not (host and port.isdigit()):
            return f"--processes {self.processes} needs a --coordinator HOST:PORT, got {self.coordinator!r}"
        if self.processes == 1 and self.coordinator:
            return "--coordinator needs --processes of at least 2"
        if port and not 0 < int(port) < 65536:
            return f"--coordinator {self.coordinator} must name a port from 1 to 65535"
        return None

    def start(self) -> None:
        """Connects this process with the others, if there are any. Raises UserError if the settings make no sense."""
        if refusal := field_refusal(self) or self.conflict():
            raise UserError(refusal)
        if self.processes > 1:
            self._connect(self.coordinator, self.processes, self.process_id)
        elif int(os.environ.get(SLURM_TASKS) or 1) > 1:
            self._connect(None, None, None)  # jax reads SLURM's environment.

    def _connect(self, coordinator: str | None, processes: int | None, process_id: int | None) -> None:
        # When it times out itself, jax aborts the process with a stack trace.
        timer = threading.Timer(self.coordinator_timeout, self._give_up)
        timer.start()
        try:
            patience = self.coordinator_timeout + 30
            jax.distributed.initialize(coordinator, processes, process_id, initialization_timeout=patience)
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        where = self.coordinator or "the coordinator that SLURM names"
        sentence = (
            f"the processes did not all reach {where} within {self.coordinator_timeout} seconds: check --coordinator, "
            "that process 0 runs there, and that all processes were started, or raise --coordinator-timeout"
        )
        end(sentence, 2)


def end(message: str, status: int) -> None:
    """Ends this process at once, without waiting for others at jax's exit barrier."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that prints and writes what is not part of a checkpoint."""
    return jax.process_index() == 0


def in_all(attempt: Callable[[], T]) -> T:
    """What `attempt` returns. Every process runs it, and if it is a user's mistake in one of them, all of them end."""
    failure, result = None, []
    try:
        result.append(attempt())
    except UserError as error:
        failure = error
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(failure is not None)).any():
        raise failure or UserError("another process cannot go on: see what it says")
    if failure:
        raise failure
    return result[0]


def from_first(number: int) -> int:
    """The first process's number, in all."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.process_count() > 1 else number


def timestamp() -> str:
    """The time at which a run starts, the same in all processes."""
    now = datetime.now()
    parts = np.array([int(f"{now:%Y%m%d}"), int(f"{now:%H%M%S}")], np.int32)
    day, second = multihost_utils.broadcast_one_to_all(parts) if jax.process_count() > 1 else parts
    return f"{int(day)}-{int(second):06d}"


class Ending:
    """Whether a signal is to end the run: asked between steps, and between the batches of a validation.

    Several processes agree on the same question, so all of them ask equally often.
    """

    def __init__(self, received: Sequence[int]):
        self._received = received
        self._questions = 0

    def signal(self) -> int:
        """The signal that ends the run here, or 0."""
        if jax.process_count() == 1:
            return self._received[0] if self._received else 0
        self._questions += 1
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(self._questions) else 0
