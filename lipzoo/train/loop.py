"""The loop over the steps of a run: compile, step, report, validate, seal, save; and leave where a signal asks to."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh
from rich.console import Console

from lipzoo.constraints.seal import seal
from lipzoo.data import Data
from lipzoo.devices.mesh import place, replicated
from lipzoo.devices.processes import Ending, is_first
from lipzoo.optim.hyper import Hyper
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import Diverged, Reporter
from lipzoo.report.records import About
from lipzoo.system.signals import abandonable
from lipzoo.theory.weight import bare, weights
from lipzoo.train.average import capped
from lipzoo.train.checkpoint import Checkpoints
from lipzoo.train.evaluate import Evaluate, Prove, Proved, Watch, make_evaluate
from lipzoo.train.plan import Plan, resolve
from lipzoo.train.state import State, all_finite, layer_norms
from lipzoo.train.step import Metrics, TrainStep, make_train_step
from lipzoo.train.steps import advance


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
    prove: Prove | None = None

    def run(self, state: State, mesh: Mesh, data: Data, received: list[int]) -> tuple[int, int]:
        """Runs the remaining steps, unless a signal is received.

        **Returns:** the last step, and the signal that ended the run early or 0.
        """
        evaluate = make_evaluate(self.recipe, mesh, data)
        start, last = int(state.step), self.recipe.training.steps
        with Reporter(self.run_dir, _about(self.recipe), start, self.console) as report, self._rescue() as latest:
            watcher = _Watcher(evaluate, report, Ending(received), self.prove)
            # A signal may have ended the run in the middle of this validation.
            if start and self._is_validated(start) and not report.validated(start):
                _, number = watcher.validate(start, state)
                if number:
                    return start, number
            plan, hyper = resolve(self.recipe)
            hooks = _Hooks(self, watcher, mesh, plan, jax.device_put(hyper, replicated(mesh)), received, latest)
            hooks.reached = start
            advance(state, map(functools.partial(place, mesh=mesh), self.stream), hooks.hyper, last, hooks)
        return hooks.reached, hooks.signal

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

    def announce(self, step: int) -> int:
        """The window that attention has from this step on; that it grows is told, since it means a compilation."""
        window = self.recipe.window_at(step)
        if window and (window < self.recipe.window_at(self.recipe.training.steps) or step > 1):
            self.console.print(f"step {step}: attention looks back {window:,} tokens (compiling)")
        return window

    def left_compiling(self, step: int, state: State) -> None:
        """Saves the last step, unless that is the first state or was saved when the step ended."""
        if step and step not in self.checkpoints.steps():
            self._check_finite(state, step)
            self._save(state, {})

    def milestone(self, step: int, state: State, watcher: "_Watcher") -> tuple[State, int]:
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
                sealed = seal(self.recipe.dressed(state.model), wait.advance)
                state = dataclasses.replace(state, model=bare(sealed))
        if due and state.average is not None:
            state = dataclasses.replace(state, average=capped(self.recipe, state.average))
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


@dataclasses.dataclass
class _Hooks:
    """What a run with a directory does around its steps."""

    loop: Loop
    watcher: "_Watcher"
    mesh: Mesh
    plan: Plan
    hyper: Hyper
    received: list[int]
    latest: list[State]
    reached: int = 0
    """The last step that was done."""
    signal: int = 0
    """What ended the run early, or 0."""
    window: int = 0
    step: TrainStep | None = None

    def before(self, step: int, state: State) -> TrainStep | None:
        """The step, compiled anew where attention's window grows. A signal does not wait for the compiler."""
        if self.step is None or self.window != self.loop.recipe.window_at(step):
            self.window = self.loop.announce(step)
            with self.watcher.report.waiting("compiling", None):
                self.step = self._compiled(state)
            if self.step is None:
                self.watcher.report.flush()
                self.loop.left_compiling(step - 1, state)
                self.signal = self.received[0]
        return self.step

    def after(self, step: int, state: State, metrics: Metrics) -> tuple[State, bool]:
        """Reports, and does what is due."""
        training, report = self.loop.recipe.training, self.watcher.report
        self.reached, self.latest[:] = step, [state]
        if self.mesh.size > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(metrics)  # Steps that wait for each other's collectives would wait for ever.
        report.step(step, metrics)
        if step == training.steps or step % training.log_interval == 0:
            report.window(step, layer_norms(state.model))
        state, self.signal = self.loop.milestone(step, state, self.watcher)
        return state, bool(self.signal)

    def _compiled(self, state: State) -> TrainStep | None:
        """The step, compiled; None if a signal came first, which in runs of several processes waits."""
        stream = self.loop.stream
        here = stream.get_state()
        batch = place(next(stream), self.mesh)
        stream.set_state(here)
        function: Any = make_train_step(self.plan, self.mesh, self.window)
        lowered = functools.partial(function.lower, state, batch, self.hyper)
        if jax.process_count() > 1:
            return lowered().compile()
        return abandonable(lambda: lowered().compile(), lambda: bool(self.received))


@dataclasses.dataclass(frozen=True)
class _Watcher:
    """Validations that show how far they are, and that a signal ends between two of their batches."""

    evaluate: Evaluate
    report: Reporter
    ending: Ending
    prove: Prove | None

    def validate(self, step: int, state: State) -> tuple[dict[str, float], int]:
        """The values of the whole test split, which it reports, or none and the signal that came."""
        with self.report.waiting("validating", None) as wait:

            def watch(done: int, count: int) -> None:
                wait.show(done, count)
                if number := self.ending.signal():
                    raise _Left(number)

            try:
                values = self.evaluate(state.model, watch, self._proved(state.model))
                if state.average is not None:
                    values |= self._of_average(state.average, watch)
            except _Left as left:
                return {}, left.number
        self.report.validation(step, values)
        return values, 0

    def _of_average(self, average: Any, watch: Watch) -> dict[str, float]:
        """What is told of the mean of the weights, on the test split alone."""
        values = self.evaluate(average, watch, self._proved(average))
        return {f"ema_{name}": value for name, value in values.items() if name.startswith("val_")}

    def _proved(self, model: Any) -> Proved | None:
        """What is proved of the weights, if they are finite, and whole in this process."""
        if self.prove is None or jax.process_count() > 1 or not all_finite(model):
            return None
        return self.prove(model)  # It takes from the devices what it can prove in time.


def _about(recipe: Recipe) -> About:
    unit, size = recipe.data.unit
    return About(
        name=recipe.name,
        steps=recipe.training.steps,
        caps={weight.name: weight.cap for weight in weights(recipe.abstract_model())},
        unit=unit,
        per_step=recipe.data.batch_size * size,
        settings=recipe.to_json(),
        loggers=recipe.training.all_loggers,
        writes=is_first(),
    )
