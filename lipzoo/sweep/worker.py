"""A process of a sweep: on its own core, or on all accelerators, it trains the runs that it is told of.

It speaks in lines of JSON: groups of runs come in on stdin, and rows go out on stdout. When stdin ends, since whoever
started it has ended, so does the process, whatever it is doing.
"""

import functools
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lipzoo.system.errors import UserError

Group = dict[str, Any]
"""`runs`: pairs of a key and a recipe as JSON, all of one plan. `together`: how many at once, 0 to measure it."""


def main(core: str, cache: str) -> None:
    """Works until there is nothing more to do. `core`: the one to stay on, or nothing; `cache`: of what is compiled."""
    if core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})  # Before jax counts the cores that it can use.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print is no row.
    groups = _groups()
    _keep_compiled(Path(cache))

    def tell(message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)

    for group in iter(groups.get, None):
        for row in rows_of(group):
            tell(row)
        tell({"idle": True})


def _groups() -> "queue.Queue[Group]":
    """What comes in, as it comes; the process ends where the input does."""
    received: queue.Queue[Group] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            received.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return received


def _keep_compiled(cache: Path) -> None:
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def rows_of(group: Group) -> Iterator[dict[str, Any]]:
    """The rows of a group of runs, as they end; what goes wrong with some is told in their rows."""
    from lipzoo.recipe.recipe import Recipe
    from lipzoo.sweep.width import width_of

    runs = [(key, Recipe.from_json(value).complete()) for key, value in group["runs"]]
    together = group["together"] or width_of([recipe for _, recipe in runs], load)
    for start in range(0, len(runs), together):
        chunk = runs[start : start + together]
        try:
            yield from _trained(chunk)
        except UserError as error:
            yield from _failed(chunk, str(error))
        except Exception as error:  # The rest of a sweep goes on.
            yield from _failed(chunk, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _trained(chunk: Sequence[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    from lipzoo.sweep.outcome import described, outcome
    from lipzoo.sweep.together import train_together

    recipes = [recipe for _, recipe in chunk]
    for (key, recipe), trained in zip(chunk, train_together(recipes, load), strict=True):
        row = outcome(recipe, trained, load(recipe))
        yield {"key": key, **row, **described(recipe), "together": len(chunk), "settings": json.dumps(recipe.to_json())}


def _failed(chunk: Sequence[tuple[str, Any]], reason: str) -> Iterator[dict[str, Any]]:
    from lipzoo.sweep.outcome import described

    for key, recipe in chunk:
        yield {"key": key, "status": "failed", "reason": reason[:500], **described(recipe)}


def load(recipe: Any) -> Any:
    """The data of a recipe, which runs share; the seed matters where it draws labels."""
    return _load(recipe.data, recipe.training.seed)


@functools.lru_cache(4)
def _load(config: Any, seed: int) -> Any:
    return config.load(seed)
