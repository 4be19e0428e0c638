"""The training loop: batches in, steps, validation, checkpoints, and a certificate of what was stored."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import jax
from jax.sharding import Mesh
from rich.console import Console

from lipzoo.theory.bound import format_power
from lipzoo.certify.run import certify
from lipzoo.train.checkpoint import Checkpoints, check_step
from lipzoo.cli.train import check_unchanged
from lipzoo.data import Images, Text, Tokens
from lipzoo.report.ebc_plots import plot_ebc
from lipzoo.system.errors import Interrupted, UserError
from lipzoo.system.files import write_text
from lipzoo.system.lock import held
from lipzoo.report.plots import plot_run
from lipzoo.devices.processes import Ending, end, in_all, is_first
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import Diverged, Reporter, check_packages
from lipzoo.train.restore import Damaged, read_recipe
from lipzoo.devices.mesh import make_mesh, place, process_rows
from lipzoo.system.terminal import abandonable, handling, make_console
from lipzoo.train.train import (
    Evaluate,
    State,
    TrainStep,
    all_finite,
    init_state,
    layer_norms,
    make_evaluate,
    make_train_step,
    seal,
)
from lipzoo.theory.weight import weights


class _Left(Exception):
    """A signal came during a validation, which it ends."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def train(recipe: Recipe, run: Path, *, resume: bool) -> int:
    """Trains a recipe in the directory `run` and certifies the last checkpoint.

    **Returns:** the exit status: 0, or 128 + n if signal n ended the run early (after saving), or 1 if it diverged.

    **Raises:** Interrupted if a signal comes before the first step or after the last, when there is nothing to save.
    """
    with contextlib.ExitStack() as stack:
        return _train(recipe, run, stack, resume=resume)


def _train(recipe: Recipe, run: Path, stack: contextlib.ExitStack, *, resume: bool) -> int:
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
        console.print(recipe.abstract_model(), f"run: {run}", sep="\n", soft_wrap=True)
    loop = _Loop(recipe, run, checkpoints, stream, console)
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
        return _finish(recipe, run, console) if is_first() else 0


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


def _prepare(recipe: Recipe) -> tuple[Recipe, Images | Text | Tokens]:
    """The complete recipe and its data."""
    if recipe.constraint.seal and jax.process_count() > 1:
        raise UserError("sealing needs all weights in one process: add --no-seal, or train with one process")
    if is_first():
        check_packages(recipe)
    recipe = recipe.complete()
    return recipe, recipe.data.load(recipe.training.seed)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """The parts that the steps of one run share."""

    recipe: Recipe
    run_dir: Path
    checkpoints: Checkpoints
    stream: grain.DatasetIterator
    console: Console

    def run(self, state: State, mesh: Mesh, data: Images | Text | Tokens, received: list[int]) -> tuple[int, int]:
        """Runs the remaining steps, unless a signal is received.

        **Returns:** the last step, and the signal that ended the run early or 0.
        """
        training = self.recipe.training
        evaluate = make_evaluate(self.recipe, mesh, data)
        start, window, train_step = int(state.step), None, None
        with Reporter(self.run_dir, self.recipe, start, self.console) as report, self._rescue() as latest:
            watcher = _Watcher(evaluate, report, Ending(received))
            # A signal may have ended the run in the middle of this validation.
            if start and self._is_validated(start) and not report.validated(start):
                _, number = watcher.validate(start, state)
                if number:
                    return start, number
            for step in range(start + 1, training.steps + 1):
                if train_step is None or window != self.recipe.window_at(step):
                    window = self._announce(step)
                    function = make_train_step(self.recipe, mesh, data.white, window)
                    with report.waiting("compiling", None):
                        train_step = self._compiled(function, state, mesh, received)
                    if train_step is None:
                        report.flush()
                        return self._left_compiling(step - 1, state), received[0]
                state, metrics = train_step(state, place(next(self.stream), mesh))
                latest[:] = [state]
                report.step(step, metrics)
                if step == training.steps or step % training.log_interval == 0:
                    report.window(step, layer_norms(state.model))
                state, number = self._milestone(step, state, watcher)
                if number:
                    return step, number
        return training.steps, 0

    @contextlib.contextmanager
    def _rescue(self) -> Iterator[list[State]]:
        """Where a write finds the run's directory gone, the state put into the list is saved elsewhere."""
        latest: list[State] = []
        try:
            yield latest
        except FileNotFoundError:
            if latest:
                self.checkpoints.check_place(latest[0], self.stream, self.recipe)
            raise

    def _announce(self, step: int) -> int:
        """The window that attention has from this step on; that it grows is told, since it means a compilation."""
        window = self.recipe.window_at(step)
        if window and (window < self.recipe.window_at(self.recipe.training.steps) or step > 1):
            self.console.print(f"step {step}: attention looks back {window:,} tokens (compiling)")
        return window

    def _compiled(self, function: Any, state: State, mesh: Mesh, received: list[int]) -> TrainStep | None:
        """The step, compiled; in a run of one process a signal does not wait for the compiler, and None is returned."""
        here = self.stream.get_state()
        batch = place(next(self.stream), mesh)
        self.stream.set_state(here)
        if jax.process_count() > 1:
            return function.lower(state, batch).compile()
        return abandonable(lambda: function.lower(state, batch).compile(), lambda: bool(received))

    def _left_compiling(self, step: int, state: State) -> int:
        """Saves the last step, unless that is the first state or was saved when the step ended."""
        if step and step not in self.checkpoints.steps():
            self._check_finite(state, step)
            self._save(state, {})
        return step

    def _milestone(self, step: int, state: State, watcher: "_Watcher") -> tuple[State, int]:
        """Seals, validates and saves where it is due, and saves where a signal ends the run: its number is returned.

        Sealing changes the weights, so the run goes on with the sealed ones, and one that is ended here seals as well:
        it must be the same when it is resumed. The validation is done then.
        """
        due = step == self.recipe.training.steps or step % self.recipe.training.save_interval == 0
        number = watcher.ending.signal()
        if due or number:
            watcher.report.flush()
            self._check_finite(state, step)
        if due and self.recipe.constraint.seal:
            with watcher.report.waiting("sealing", len(weights(state.model))) as wait:
                state = dataclasses.replace(state, model=seal(state.model, wait.advance))
        values: dict[str, float] = {}
        if self._is_validated(step) and not number:
            values, number = watcher.validate(step, state)
        if due or number:
            self._save(state, values)
        return state, number

    def _is_validated(self, step: int) -> bool:
        return step == self.recipe.training.steps or step % self.recipe.training.val_interval == 0

    def _check_finite(self, state: State, step: int) -> None:
        if not all_finite(state.model):
            factor = self.recipe.optimizer.factor(self.recipe.training.steps)
            raise Diverged(step, self.recipe.optimizer.lr * float(factor(state.step - 1)))

    def _save(self, state: State, values: dict[str, float]) -> None:
        self.checkpoints.save(state, self.stream, self.recipe, values)


@dataclasses.dataclass(frozen=True)
class _Watcher:
    """Validations that show how far they are, and that a signal ends between two of their batches."""

    evaluate: Evaluate
    report: Reporter
    ending: Ending

    def validate(self, step: int, state: State) -> tuple[dict[str, float], int]:
        """The values of the whole test split, which it reports, or none and the signal that came."""
        with self.report.waiting("validating", None) as wait:

            def watch(done: int, count: int) -> None:
                wait.show(done, count)
                if number := self.ending.signal():
                    raise _Left(number)

            try:
                values = self.evaluate(state.model, watch)
            except _Left as left:
                return {}, left.number
        self.report.validation(step, values)
        return values, 0


def _note(run: Path, recipe: Recipe) -> None:
    """Writes what the run was started with beside its checkpoints, for whoever reads it."""
    if is_first():
        write_text(run / "recipe.json", json.dumps(recipe.to_json(), indent=2) + "\n")


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
        check_unchanged(read_recipe(path), recipe)
    except UserError:
        check_step(path)  # Of a step that is not whole, the recipe says nothing.
        raise
    if step <= recipe.training.steps:
        return checkpoints.restore(step, state, data)
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


def _finish(recipe: Recipe, run: Path, console: Console) -> int:
    """Certifies what was stored, and draws the curves."""
    certificate, _, path = certify(run, console)
    console.print(certificate)
    model = recipe.abstract_model()
    caps = {weight.name: weight.cap for weight in weights(model)}
    bound = format_power(certificate.certified.log10_lipschitz)
    picture = plot_run(run, caps, f"{recipe.name}: certified Lipschitz bound {bound}")
    console.print(f"wrote {path} and {picture}", soft_wrap=True)
    if recipe.ebc.enable:
        plot_ebc(run, recipe.name)
    return 0
