"""Which process trains what: one a core where there are CPUs, one for all accelerators; each keeps to one structure as
long as there are runs of it, since another one means a compilation."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lipzoo.sweep.results import Row
from lipzoo.sweep.runs import Run

ASK = "import jax; print(jax.default_backend())"
START = "import sys; from lipzoo.sweep.worker import main; main(*sys.argv[1:])"
ATTEMPTS = 2
"""How often runs whose process ended under them are tried."""


class Platform:
    """What jax computes on where runs are trained. This process itself only plans, on a CPU: whoever looks at
    accelerators takes their memory, so another one is asked, while other things are done."""

    def __init__(self):
        import jax

        known = os.environ.get("JAX_PLATFORMS") == "cpu"
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self._asked = None if known else subprocess.Popen([sys.executable, "-c", ASK], **options)
        jax.config.update("jax_platforms", "cpu")

    def is_cpu(self) -> bool:
        """Whether runs are trained on CPUs: also where jax does not start, which the first worker then tells."""
        words = self._asked.communicate()[0].split() if self._asked else []
        self._asked = None
        return not words or words[-1] == "cpu"


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


class Pending:
    """Runs that wait, in groups of equal structure, and which of these is whose."""

    def __init__(self, runs: Sequence[tuple[Any, Run]], together: int):
        self._groups: dict[Any, list[Run]] = {}
        for plan, run in runs:
            self._groups.setdefault(plan, []).append(run)
        self._together = together
        self._lock = threading.Lock()
        self._owners: dict[int, Any] = {}
        """The structure that each worker has compiled last."""

    def next_for(self, worker: int) -> list[Run]:
        """Runs of one structure: the worker's own, else one that nobody works on, else that of which most are left.

        `together` at once; 0 for all of a structure, of which the worker then takes as many at once as it measures.
        """
        with self._lock:
            waiting = {plan: runs for plan, runs in self._groups.items() if runs}
            if not waiting:
                return []
            owned = [self._owners.get(other) for other in self._owners if other != worker]
            plan = self._owners.get(worker)
            if plan not in waiting:
                free = [plan for plan in waiting if plan not in owned] or list(waiting)
                plan = max(free, key=lambda plan: len(waiting[plan]))
            self._owners[worker] = plan
            count = self._together or len(waiting[plan])
            chosen, self._groups[plan] = waiting[plan][:count], waiting[plan][count:]
            return chosen


@dataclasses.dataclass
class Worker:
    """One process, and the thread that feeds it. `core`: the one that it stays on, or None for all."""

    number: int
    core: int | None
    folder: Path
    together: int
    process: "subprocess.Popen[str] | None" = None
    status: int = 0
    """Of the process that has ended last."""
    closed: bool = False
    """Whether the sweep has ended, so that nothing is begun or told any more."""

    def start(self) -> "subprocess.Popen[str]":
        """The process, started anew if it has ended."""
        if self.process is None:
            single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} if self.core is not None else {}
            words = ["" if self.core is None else str(self.core), str(self.folder / "compiled")]
            with (self.folder / f"worker-{self.number}.log").open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", START, *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, **single},
                    start_new_session=True,  # Ctrl-C is for whoever started it.
                )
        return self.process

    def work(self, pending: Pending, tell: Callable[[Row], None]) -> None:
        """Trains what is pending until nothing is."""
        while runs := pending.next_for(self.number):
            left = {run.key: run for run in runs}
            for _ in range(ATTEMPTS):
                for row in self._rows(list(left.values())):
                    del left[row["key"]]
                    tell(row)
                if self.closed:
                    return
                if not left:
                    break
            for key in left:
                tell({"key": key, "status": "failed", "reason": self._ended()})

    def _rows(self, runs: Sequence[Run]) -> Any:
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        group = {"runs": [(run.key, run.recipe.to_json()) for run in runs], "together": self.together}
        with contextlib.suppress(BrokenPipeError):  # Its output says that it has ended.
            print(json.dumps(group), file=process.stdin, flush=True)
        for line in process.stdout:
            message = json.loads(line)
            if message.get("idle"):
                return
            yield message
        self.stop()

    def _ended(self) -> str:
        status = self.status
        why = f"by signal {-status}; is there too little memory?" if status < 0 else f"with status {status}"
        return f"its process ended {why} (see {self.folder / f'worker-{self.number}.log'})"

    def close(self) -> None:
        """Ends the work for good."""
        self.closed = True
        self.stop()

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        self.status = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close() if pipe else None


def train_all(
    runs: Sequence[tuple[Any, Run]],
    folder: Path,
    workers: int,
    together: int,
    on_cpu: bool,
    tell: Callable[[Row], None],
) -> None:
    """Trains all runs, each with its structure; `tell` is called with every row, one after the other.

    `workers` 0: as many as there are cores; one where there are accelerators. `together` 0: chosen by each worker.
    """
    available = cores()
    count = min(workers or (len(available) if on_cpu else 1), len(runs))
    pinned = on_cpu and 1 < count <= len(available)
    team = [Worker(number, available[number] if pinned else None, folder, together) for number in range(count)]
    pending = Pending(runs, together or (1 if on_cpu else 0))
    lock, failures = threading.Lock(), []

    def tell_one(row: Row) -> None:
        with lock:
            tell(row)

    def attempt(worker: Worker) -> None:
        try:
            worker.work(pending, tell_one)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=attempt, args=(worker,), daemon=True) for worker in team]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):  # Signals reach the main thread between two waits.
            for thread in threads:
                thread.join(0.1)
    finally:
        for worker in team:
            worker.close()
    if failures:
        raise failures[0]
