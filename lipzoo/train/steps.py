"""The one loop over training steps. What happens around them is its hooks' affair."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from lipzoo.optim.hyper import Hyper
from lipzoo.train.state import State
from lipzoo.train.step import Batch, Metrics, TrainStep


@runtime_checkable
class Hooks(Protocol):
    """What a run does around its steps, which count from 1. What waits for a device in each of them is slow."""

    def before(self, step: int, state: State) -> TrainStep | None:
        """The compiled step to do next; None to end the run before it."""
        ...

    def after(self, step: int, state: State, metrics: Metrics) -> tuple[State, bool]:
        """The state to go on with, and whether to end the run here."""
        ...


def advance(state: State, batches: Iterator[Batch], hyper: Hyper, last: int, hooks: Hooks) -> State:
    """The state after step `last`, or after the one at which a hook ended the run. `state` is donated."""
    for step in range(int(state.step) + 1, last + 1):
        train_step = hooks.before(step, state)
        if train_step is None:
            break
        state, metrics = train_step(state, next(batches), hyper)
        state, ended = hooks.after(step, state, metrics)
        if ended:
            break
    return state
