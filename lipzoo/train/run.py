"""Whole runs: begun or gone on with in their directory, and ended."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import grain
import jax
from rich.console import Console

from lipzoo.data import Data
from lipzoo.devices.mesh import make_mesh, process_rows
from lipzoo.devices.processes import end, in_all, is_first
from lipzoo.recipe.changes import check_unchanged
from lipzoo.recipe.largest_step import fitted, largest_step
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.loggers import check_packages
from lipzoo.report.metrics import Diverged
from lipzoo.system.errors import Interrupted, UserError
from lipzoo.system.lock import held
from lipzoo.system.signals import handling
from lipzoo.system.streams import make_console
from lipzoo.train.checkpoint import Checkpoints
from lipzoo.train.contents import check_step, note_recipe
from lipzoo.train.evaluate import Prove
from lipzoo.train.loop import Loop
from lipzoo.train.reading import Damaged, read_recipe
from lipzoo.train.rested import rested
from lipzoo.train.state import State, init_state

Finish = Callable[[Recipe, Path, Console], None]
"""What is done with a run that is complete, in the first process: the whole recipe, the directory, a console."""


def train(recipe: Recipe, run: Path, *, resume: bool, finish: Finish, prove: Prove | None = None) -> int:
    """Trains a recipe in the directory `run`, and hands what is complete to `finish`; each validation tells what
    `prove` says of the weights.

    **Returns:** the exit status: 0, or 128 + n if signal n ended the run early (after saving), or 1 if it diverged.

    **Raises:** Interrupted if a signal comes before the first step or after the last, when there is nothing to save.
    """
    recipe = fitted(recipe)
    with contextlib.ExitStack() as stack:
        return _train(recipe, run, stack, finish, prove, resume=resume)


def _train(
    recipe: Recipe, run: Path, stack: contextlib.ExitStack, finish: Finish, prove: Prove | None, *, resume: bool
) -> int:
    console = make_console(quiet=not is_first())
    with _interruptible(lambda: _before_the_first_step(run)):
        mesh = make_mesh(recipe.training.mesh)
        claim = functools.partial(_claim, run, stack, resume=resume)
        early = run.exists()  # What is refused is refused at once, and without data no directory is made.
        in_all(lambda: claim() if is_first() and early else None)
        prepare = functools.partial(_prepare, recipe)
        first = in_all(lambda: prepare() if is_first() else None)  # It downloads what is missing; then all read it.
        recipe, data = in_all(lambda: first or prepare())
        in_all(lambda: claim() if is_first() and not early else None)
        if not resume:
            _note(run, recipe)
        batch_size, steps, seed = recipe.data.batch_size, recipe.training.steps, recipe.training.seed
        stream = data.batches(batch_size=batch_size, count=steps, seed=seed, rows=process_rows(mesh, batch_size))
        checkpoints = Checkpoints(run, recipe.training.keep)
        state = init_state(recipe, mesh)
        if resume:
            state = _restore(recipe, run, checkpoints, state, stream, console)
            _note(run, recipe)
        told = f"largest change of a step: {largest_step(recipe).told}", f"run: {run}"
        console.print(recipe.abstract_model(), *told, sep="\n", soft_wrap=True)
    loop = Loop(recipe, run, checkpoints, stream, console, prove)
    with _signals() as received:  # Until what is being written has been written.
        try:
            step, interrupted = loop.run(state, mesh, data, received)
        except Diverged as error:
            good = checkpoints.steps()
            kept = f"the last good checkpoint is step {good[0]} in {run}" if good else "no checkpoint had been saved"
            print(f"error: {error}: {kept}; lower --lr", file=sys.stderr)
            return 1
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() > 1:
                end(f"another process has ended ({str(error)[:80]}): start them all again with --resume {run}", 1)
            raise
        finally:
            checkpoints.close()
    if interrupted:
        saved = f"saved step {step}" if step else "no step was done"
        console.print(f"{saved}; go on with --resume {run}", soft_wrap=True)
        return 128 + interrupted
    with _interruptible(lambda: f"the run is complete and saved; python -m lipzoo.certify {run} certifies it"):
        if received:
            raise Interrupted("", received[0])
        if is_first():
            finish(recipe, run, console)
        return 0


@contextlib.contextmanager
def _interruptible(saved: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are raised as usual, with a word on what is saved."""
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(f"interrupted: {saved()}", number) from error


def _before_the_first_step(run: Path) -> str:
    if not (run / "recipe.json").exists():
        return "the run had not begun, and has written nothing"
    return f"no step was done; go on with --resume {run}"


def _prepare(recipe: Recipe) -> tuple[Recipe, Data]:
    """The complete recipe and its data."""
    if recipe.constraint.seal and jax.process_count() > 1:
        raise UserError("sealing needs all weights in one process: add --no-seal, or train with one process")
    if is_first():
        check_packages(recipe.training.all_loggers)
    recipe = recipe.complete()
    return recipe, recipe.data.load(recipe.training.seed)


def _note(run: Path, recipe: Recipe) -> None:
    """Writes what the run was started with beside its checkpoints, for whoever reads it."""
    if is_first():
        note_recipe(run, recipe)


def _claim(run: Path, stack: contextlib.ExitStack, *, resume: bool) -> None:
    """Makes the run's directory and holds its lock as long as the stack is open."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        stack.enter_context(held(run))
    except OSError as error:
        raise UserError(f"cannot write to {run} ({error.strerror}): choose another --run-dir") from error
    if not resume and ((run / "recipe.json").exists() or (run / "checkpoints").exists()):
        raise UserError(f"{run} already holds a run: choose another --run-dir, or go on with --resume {run}")


def _restore(
    recipe: Recipe, run: Path, checkpoints: Checkpoints, state: State, data: grain.DatasetIterator, console: Console
) -> State:
    """The newest state that is whole, or `state` if the run was killed before its first checkpoint.

    Newer ones, which are not whole, are renamed: the run will come to their steps again. Nothing is renamed if the run
    cannot go on.
    """
    passed: list[int] = []
    for step in checkpoints.steps():
        try:
            restored = _restore_step(recipe, run / "checkpoints" / str(step), checkpoints, state, data)
        except Damaged as error:
            console.print(f"warning: the checkpoint of step {step} {error.says}: {error}", style="yellow")
            passed.append(step)
            continue
        for other in passed if is_first() else ():
            console.print(f"step {other} is kept as {checkpoints.set_aside(other)}", soft_wrap=True)
        return restored
    if passed:
        raise UserError(f"no checkpoint of {run} can be used as it is: mend that, or start a new run")
    console.print("there is no checkpoint: starting from the first step")
    return state


def _restore_step(
    recipe: Recipe, path: Path, checkpoints: Checkpoints, state: State, data: grain.DatasetIterator
) -> State:
    """The state of a step. Raises Damaged, or UserError if it is whole but this recipe cannot go on from it."""
    step = int(path.name)
    try:
        stored = read_recipe(path)
        check_unchanged(stored, recipe)
    except UserError:
        check_step(path)  # Of a step that is not whole, the recipe says nothing.
        raise
    if step <= recipe.training.steps:
        restored = checkpoints.restore(step, state, data)
        if stored.training.steps != recipe.training.steps:
            restored = dataclasses.replace(restored, model=rested(recipe, restored.model))
        return restored
    check_step(path)
    raise UserError(f"the run has reached step {step}: give --steps {step} or more, or leave it out")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that the loop can save and leave between steps."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {signal.SIGINT: note, signal.SIGTERM: note}
    if jax.process_count() > 1:  # jax tells all processes of a SIGTERM to one of them.
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
    with handling(handlers):
        yield received
