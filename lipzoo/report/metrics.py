"""What a run tells: progress on the terminal, metrics.jsonl, and whatever loggers are asked for."""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lipzoo.report.loggers import open_loggers
from lipzoo.report.records import About, Record, Sink
from lipzoo.system.errors import UserError
from lipzoo.system.files import check_regular, parse_json, write_text
from lipzoo.system.progress import TimeColumn, Wait, part_of

WHERE = {"val": "validation", "ema_val": "  of the mean of the weights:"}
"""What is said of the names of validations; others are those of parts of the test split."""
LONGEST_LINE = 1 << 20
"""Characters of a line of metrics.jsonl that are read at once."""


class Diverged(Exception):
    """The loss or a weight is no longer finite."""

    def __init__(self, step: int, lr: float):
        super().__init__(f"the loss or a weight became NaN or infinite at step {step} (learning rate {lr:.4g})")


class Reporter:
    """Collects the metrics of steps as device values and reads them one step late, so that no step waits for them."""

    def __init__(self, run: Path, about: About, start: int, console: Console):
        self._about = about
        self._console = console
        self._metrics = run / "metrics.jsonl"
        self._sinks: list[Sink] = []
        self._closing = contextlib.ExitStack()
        self._validated = {r["step"] for r in read_metrics(self._metrics) if "val_loss" in r and r["step"] <= start}
        if about.writes:
            _truncate(self._metrics, start)
            self._sinks = [self._write, *open_loggers(run, about, start, self._closing)]
        self._pending: list[tuple[int, Any]] = []
        self._norms: tuple[int, Any] | None = None
        self._clock = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),  # The whole line fits 80 columns.
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
        )
        total = about.steps
        self._task = self._progress.add_task(about.name, total=total, completed=start, rate="", status="compiling")

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        self._closing.close()

    def validated(self, step: int) -> bool:
        """Whether the run has this validation already, from before it was resumed."""
        return step in self._validated

    def waiting(self, what: str, parts: int | None) -> contextlib.AbstractContextManager[Wait]:
        """Shows a wait for so many parts below the steps; its time does not count in the rate of the steps."""
        return part_of(self._progress, what, parts)

    def step(self, step: int, metrics: Any) -> None:
        """Notes that `step` was dispatched; reads the window before it if that is complete."""
        if self._norms is not None:
            self.flush()
        self._pending.append((step, metrics))
        self._progress.update(self._task, completed=step)

    def window(self, step: int, norms: Any) -> None:
        """Ends a window of steps: its mean goes into the metrics once the next step was dispatched."""
        self._norms = (step, norms)

    def flush(self) -> None:
        """Reads what is pending. Raises Diverged, naming the first step whose loss is not finite."""
        values = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), value in zip(self._pending, values, strict=True):
            if not math.isfinite(value["loss"]):
                raise Diverged(step, float(value["lr"]))
        if self._norms is None:
            return
        step, norms = self._norms
        now = time.perf_counter()
        rate = len(values) * self._about.per_step / max(now - self._clock, 1e-9)
        record: Record = {n: _summary(n, [float(v[n]) for v in values]) for n in values[0] if n != "lr"}
        record |= {"step": step, "lr": float(values[-1]["lr"]), f"{self._about.unit}_per_second": round(rate, 1)}
        record["norms"] = {name: float(norm) for name, norm in jax.device_get(norms).items()}
        self._emit(record)
        self._clock, self._pending, self._norms = now, [], None

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Reports the whole test split."""
        self.flush()
        self._emit({"step": step, **values})
        for name in (key.removesuffix("_loss") for key in values if key.endswith("_loss")):
            where = WHERE.get(name, f"  on the {name.replace('_', ' ')}:")
            loss, accuracy = values[f"{name}_loss"], values[f"{name}_accuracy"]
            self._console.print(f"step {step}: {where} loss {loss:.4f}, accuracy {accuracy:.2%}{_proved(name, values)}")
        self._clock = time.perf_counter()

    def _emit(self, record: Record) -> None:
        for sink in self._sinks:
            sink(record)
        if "norms" in record:
            status = f"loss {record['loss']:.3f} acc {record['accuracy']:.1%} {_largest(self._about.caps, record)}"
            rate = f"{record[f'{self._about.unit}_per_second']:,.0f}/s"
            self._progress.update(self._task, rate=rate, status=status)

    def _write(self, record: Record) -> None:
        with self._metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _summary(name: str, values: Sequence[float]) -> float:
    """What is told of a window of steps: the mean, or the largest value."""
    return max(values) if name.startswith("largest_") else sum(values) / len(values)


def _largest(caps: Mapping[str, float], record: Record) -> str:
    """The largest norm over its cap; where there are no caps, the largest norm."""
    capped = [name for name in record["norms"] if math.isfinite(caps[name])]
    name = max(capped or record["norms"], key=lambda n: record["norms"][n] / (caps[n] if capped else 1))
    cap = f"/{caps[name]:g}" if math.isfinite(caps[name]) else ""
    return f"norm {record['norms'][name]:.3g}{cap}"


def _proved(name: str, values: dict[str, float]) -> str:
    """What is proved of a classifier, for the line of a validation."""
    certified = values.get(f"{name}_certified_accuracy")
    return "" if certified is None else f", certified at 36/255 {certified:.2%}"


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics.jsonl; a line that was cut off by a kill, or is none of ours, is passed over."""
    if not path.exists():
        return []
    records = []
    try:
        check_regular(path)
    except ValueError as error:
        raise UserError(f"{error}: move {path} away") from error
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(LONGEST_LINE):
            with contextlib.suppress(ValueError):
                record = parse_json(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
    return records


def _truncate(path: Path, start: int) -> None:
    """Drops the records after `start`, which a resumed run writes again."""
    kept = [record for record in read_metrics(path) if record["step"] <= start]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
