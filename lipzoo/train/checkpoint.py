"""Checkpoints with Orbax: weights, the rest of the state, the data iterator and the recipe, together.

A checkpoint has five items: `model` (weights by name), `rest` (optimizer, step, random key), `data` (the state of
grain's iterator, JSON), `recipe` (JSON: version, step, metrics, recipe) and `digests` (checksums of all arrays, sha256
of the JSON); and `average`, where a mean of the weights is kept. Weights stand apart so that a tool can restore them
without the optimizer; digests tell damage that the storage format does not notice. Every process writes what lies on
its devices, and any number of them can read it.

Arrays of size zero are not stored: Orbax refuses them, and there is nothing in them. Arrays of 64 bits are stored as
pairs of 32-bit words, so that a process without JAX_ENABLE_X64 can read them.
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from lipzoo.devices.processes import is_first
from lipzoo.models import AbstractModule
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.files import plain
from lipzoo.train.arrays import check_arrays, read_arrays, shapes_of, weight_arrays, with_arrays
from lipzoo.train.contents import about, items, parts_of, storable, validation_loss, with_rest
from lipzoo.train.digests import Arrays
from lipzoo.train.load import Loaded as Loaded
from lipzoo.train.load import load as load
from lipzoo.train.reading import (
    Damaged,
    Misplaced,
    check_whole,
    first_line,
    item_json,
    step_number,
)
from lipzoo.train.state import State

SPARE_BYTES = 1 << 19
"""Room for what a checkpoint holds beside the arrays."""
GONE = "the directory {} is gone or was replaced while the run trained in it"
LEFTOVERS = ("*.orbax-checkpoint-tmp*", "*.pruned")
"""What a kill leaves of steps that were being written or removed."""


class Checkpoints:
    """The checkpoints of a run: `<run>/checkpoints/<step>`, the newest `keep` and the one of least validation loss.

    Each is written beside the training, read back, and only then older ones are removed.
    """

    def __init__(self, run: Path, keep: int):
        self._run, self._keep = run, keep
        self._folder = run.absolute() / "checkpoints"
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._beside = ThreadPoolExecutor(1)
        self._job: Future[None] | None = None
        self._good: int | None = None
        if is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            for pattern in LEFTOVERS:
                for path in self._folder.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)
            self._place = self._folder.stat()

    def save(self, state: State, data: grain.DatasetIterator, recipe: Recipe, metrics: Mapping[str, float]) -> None:
        """Writes a checkpoint in the background; it appears under its step once it is complete."""
        self.check_place(state, data, recipe)
        self._wait()
        step, place = int(state.step), dict(data.get_state())  # The same in all processes: any number can resume.
        parts = parts_of(state)
        arrays = {name: storable(part) for name, part in parts.items()}
        self._check_space(sum(array.nbytes for part in arrays.values() for array in part.values()))
        contents = items(arrays, {"data": place, "recipe": about(step, recipe, metrics)})
        shapes = {name: shapes_of(part) for name, part in parts.items()}
        with self._writing(step):
            if is_first() and (self._folder / str(step)).exists():
                self.set_aside(step)
            self._writer.save(plain(self._folder) / str(step), args=ocp.args.Composite(**contents))
        self._job = self._beside.submit(self._settle, step, shapes)

    def _settle(self, step: int, shapes: Mapping[str, Any]) -> None:
        """Waits for a checkpoint, reads it back, and removes older ones."""
        self._writer.wait_until_finished()
        if not is_first():
            return
        path = self._folder / str(step)
        if not self._in_place():  # Orbax makes it anew.
            raise UserError(GONE.format(self._run))
        check_whole(path)
        for item, like in shapes.items():
            check_arrays(path, item, like)
        self._good = step
        for old in self._dispensable(step):
            gone = old.rename(old.with_name(f"{old.name}.pruned"))  # A kill must not leave half of a step.
            shutil.rmtree(gone)

    def _dispensable(self, newest: int) -> list[Path]:
        """The steps that need not be kept. One whose loss cannot be read is kept."""
        losses: dict[Path, float] = {}
        for number in self._stored():
            path = self._folder / str(number)
            with contextlib.suppress(Damaged, UserError):
                if number <= newest:
                    losses[path] = validation_loss(path)
        best = min(losses, key=losses.__getitem__, default=None)
        return [path for path in list(losses)[self._keep :] if path != best or losses[path] == math.inf]

    def check_place(self, state: State, data: grain.DatasetIterator, recipe: Recipe) -> None:
        """If the run's directory is gone, saves what is in memory elsewhere and raises UserError."""
        if not is_first() or self._in_place():
            return
        with contextlib.suppress(UserError):  # What was being written is gone too.
            self._wait()
        if jax.process_count() > 1:
            raise UserError(GONE.format(self._run))
        fresh = _unused(self._run, "rescued")
        other = Checkpoints(fresh, self._keep)
        other.save(state, data, recipe, {})
        other.close()
        raise UserError(
            f"{GONE.format(self._run)}: step {int(state.step)} is saved in {fresh}, go on with --resume {fresh}"
        )

    def _in_place(self) -> bool:
        """Whether the folder is still the one that the run began to write to."""
        try:
            return os.path.samestat(self._folder.stat(), self._place)
        except OSError:
            return False

    def set_aside(self, step: int) -> Path:
        """Renames a step that cannot be used, so that nothing writes over it and no tool takes it for a step."""
        path = self._folder / str(step)
        return path.rename(_unused(path, "aside"))

    def _check_space(self, size: int) -> None:
        """Refuses to begin what cannot be finished: the writing itself goes on beside the training."""
        free = shutil.disk_usage(self._folder).free
        if free < size + SPARE_BYTES:
            raise UserError(
                f"the disk is full: a checkpoint needs {size + SPARE_BYTES:,} bytes, {self._folder} has "
                f"{free:,} left; free some space and go on with --resume {self._run}"
            )

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first. Waits for what is being written."""
        self._wait()
        return self._stored()

    def _stored(self) -> list[int]:
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted((n for path in paths if (n := step_number(path)) is not None), reverse=True)

    def restore(self, step: int, like: State, data: grain.DatasetIterator) -> State:
        """The state at `step`, on the devices of `like`; sets the data iterator back to it. Raises Damaged."""
        path = self._folder / str(step)
        check_whole(path)
        found = {item: read_arrays(path, item, arrays) for item, arrays in parts_of(like).items()}
        restored = with_rest(like, found["rest"])
        if int(restored.step) != step:
            raise Misplaced(f"it holds step {int(restored.step)}")
        try:
            data.set_state(item_json(path, "data"))
        except Exception as error:  # The file is whole, or too old to know.
            raise UserError(f"the data iterator of {path} cannot be set ({first_line(error)})") from error
        average = None if like.average is None else with_arrays(like.average, found["average"])
        return dataclasses.replace(restored, model=with_arrays(like.model, found["model"]), average=average)

    def close(self) -> None:
        """Waits for what is being written, and for its being read back."""
        try:
            self._wait()
        finally:
            self._beside.shutdown()
            with contextlib.suppress(Exception):  # It was raised by the job.
                self._writer.close()

    def _wait(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            with self._writing(None):
                job.result()

    @contextlib.contextmanager
    def _writing(self, step: int | None) -> Iterator[None]:
        """What the storage layers raise when they cannot write is of many types; to the user it is one mishap."""
        try:
            yield
        except UserError:
            raise
        except Damaged as error:
            raise UserError(
                f"a checkpoint in {self._folder} does not read back as it was written ({error}): {self._kept()}"
            ) from error
        except Exception as error:
            raise UserError(
                f"could not write a checkpoint to {self._folder} ({_mishap(error)}): {self._kept()}"
            ) from error

    def _kept(self) -> str:
        """What is known to be whole, and how to go on."""
        good = "" if self._good is None else f"step {self._good} was read back and is whole; "
        return f"{good}once that is mended, go on with --resume {self._run}"


def save_model(run: Path, step: int, model: AbstractModule, recipe: Recipe) -> Path:
    """Writes a checkpoint of weights alone: tools can load it, but no run can go on from it."""
    return save_weights(run, step, weight_arrays(model), recipe)


def save_weights(run: Path, step: int, arrays: Arrays, recipe: Recipe, stored: str | None = None) -> Path:
    """As `save_model`, from arrays that may be packed in the format `stored` (`lipzoo.train.packed`)."""
    path = run.absolute() / "checkpoints" / str(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = items({"model": storable(arrays)}, {"recipe": about(step, recipe, {}, stored)})
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(plain(path.parent) / str(step), args=ocp.args.Composite(**contents))
    except Exception as error:  # As in Checkpoints: of many types, to the user one mishap.
        raise UserError(f"could not write {path} ({_mishap(error)}): delete {run} and try again") from error
    return path


def _unused(path: Path, word: str) -> Path:
    """A name beside `path` that is not taken."""
    number = 1
    while (other := path.with_name(f"{path.name}.{word}" + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    return other


def _mishap(error: Exception) -> str:
    return "the disk is full" if "No space left" in str(error) else first_line(error)
