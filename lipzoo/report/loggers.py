"""Where the metrics of a run go beside metrics.jsonl, one entry of `LOGGERS` each."""

import contextlib
import importlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lipzoo.report.records import About, Record, Sink, flat
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text


def _tensorboard(run: Path, about: About, start: int, closing: contextlib.ExitStack) -> Sink:
    """Points after `start`, which a resumed run writes again, are declared void."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
    closing.callback(writer.close)

    def write(record: Record) -> None:
        for name, value in flat(record).items():
            writer.add_scalar(name, value, record["step"])
        writer.flush()

    return write


def _wandb(run: Path, about: About, start: int, closing: contextlib.ExitStack) -> Sink:
    """A resumed run goes on with its own run there, which takes no point of a step that it has already."""
    import wandb  # pyright: ignore[reportMissingImports]

    options = {"project": "lipzoo", "name": run.name, "dir": str(run), "config": dict(about.settings)}
    try:
        session = wandb.init(id=_stored_id(run / "wandb_id"), resume="allow", **options)
    except Exception as error:  # No account, no network, a folder that cannot be written: of many types.
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"Weights & Biases does not start ({what[0]}): leave --wandb out, or mend that") from error
    closing.callback(session.finish)
    return lambda record: session.log(flat(record), step=record["step"])


def _stored_id(path: Path) -> str:
    """What a run is called at Weights & Biases, chosen when it is first asked for."""
    if not path.is_file():
        write_text(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8").strip()


class Logger(NamedTuple):
    """A place for metrics.

    **Attributes:**

    - `open`: (run, about, start, closing) → a function that takes each record: `step`, and metrics by name. A run that
      is resumed has `start` steps, and says again what came after; what is to be closed goes on `closing`.
    - `package`: what has to be installed for it, by the name of its extra, lipzoo[NAME]; none for what needs nothing.
    """

    open: Callable[[Path, About, int, contextlib.ExitStack], Sink]
    package: str = ""


LOGGERS: dict[str, Logger] = {
    "tensorboard": Logger(_tensorboard, "tensorboardX"),
    "wandb": Logger(_wandb, "wandb"),
}

if TYPE_CHECKING:
    LoggerName = str
else:
    LoggerName = Literal[tuple(LOGGERS)]


def check_packages(loggers: Sequence[str]) -> None:
    """Raises UserError if a package is missing that these loggers need; to be called before a run is begun."""
    for name in (name for name in loggers if LOGGERS[name].package):
        try:
            importlib.import_module(LOGGERS[name].package)
        except ImportError as error:
            raise UserError(f"--{name} needs a package: pip install 'lipzoo[{name}]'") from error


def open_loggers(run: Path, about: About, start: int, closing: contextlib.ExitStack) -> list[Sink]:
    """What takes the records of a run."""
    return [LOGGERS[name].open(run, about, start, closing) for name in about.loggers]
