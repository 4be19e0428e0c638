"""The loop over the steps of a run: compile, step, report, validate, seal, save; and leave where a signal asks to."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh
from rich.console import Console

from lipzoo.constraints.seal import seal
from lipzoo.data import Images, Text, Tokens
from lipzoo.devices.mesh import place
from lipzoo.devices.processes import Ending, is_first
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import About, Diverged, Reporter
from lipzoo.system.signals import abandonable
from lipzoo.theory.weight import weights
from lipzoo.train.checkpoint import Checkpoints
from lipzoo.train.evaluate import Evaluate, make_evaluate
from lipzoo.train.state import State, all_finite, layer_norms
from lipzoo.train.step import TrainStep, make_train_step


class _Left(Exception):
    """A signal came during a validation, which it ends."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@dataclasses.dataclass(frozen=True)
class Loop:
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
        with Reporter(self.run_dir, _about(self.recipe), start, self.console) as report, self._rescue() as latest:
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


def _about(recipe: Recipe) -> About:
    unit, size = recipe.data.unit
    return About(
        name=recipe.name,
        steps=recipe.training.steps,
        caps={weight.name: weight.cap for weight in weights(recipe.abstract_model())},
        unit=unit,
        per_step=recipe.data.batch_size * size,
        settings=recipe.to_json(),
        tensorboard=recipe.training.tensorboard,
        wandb=recipe.training.wandb,
        writes=is_first(),
    )
