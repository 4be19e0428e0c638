"""What a checkpoint of a run holds: arrays of its state by name, what is noted of it, and the digests of both."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lipzoo.models import AbstractModule
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.version import VERSION
from lipzoo.theory.weight import map_weights, weights
from lipzoo.train.arrays import check_arrays, shapes_of, weight_arrays
from lipzoo.train.digests import Arrays, checksums, json_digest
from lipzoo.train.load import Loaded as Loaded
from lipzoo.train.load import load as load
from lipzoo.train.plan import resolve
from lipzoo.train.reading import Damaged, check_whole, find_steps, read_about, read_recipe
from lipzoo.train.state import State, abstract_state


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run of which everything is whole; None if there is no checkpoint yet.

    **Raises:** UserError if none is whole, or one cannot be used for another reason.
    """
    failures = []
    for path in find_steps(run):
        try:
            check_step(path)
            return path
        except Damaged as error:
            failures.append(f"step {path.name} {error.says}: {error}")
    if failures:
        raise UserError(
            f"no checkpoint of {run} can be used as it is ({'; '.join(failures)}): mend that, or start a new run"
        )
    return None


def check_step(path: Path) -> None:
    """Reads all of a step, in this process and without a device. Raises Damaged."""
    check_whole(path)
    plan, _ = resolve(read_recipe(path))
    for item, like in parts_of(abstract_state(plan)).items():
        check_arrays(path, item, shapes_of(like))


def note_recipe(run: Path, recipe: Recipe) -> None:
    """Writes a run's recipe beside its checkpoints, for whoever reads it."""
    write_text(run / "recipe.json", json.dumps(recipe.to_json(), indent=2) + "\n")


def about(step: int, recipe: Recipe, metrics: Mapping[str, float], stored: str | None = None) -> dict[str, Any]:
    """What is noted of a checkpoint; `stored` is the format of its weights, if that is not float32."""
    value = {"lipzoo": VERSION, "step": step, "metrics": dict(metrics), "recipe": recipe.to_json()}
    return value if stored is None else value | {"stored": stored}


def items(arrays: Mapping[str, Arrays], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays, JSON values, and the digests of both, as Orbax takes them."""
    digests = {name: checksums(part) for name, part in arrays.items()}
    digests |= {name: json_digest(value) for name, value in values.items()}
    return {
        **{name: ocp.args.StandardSave(part) for name, part in arrays.items()},
        **{name: ocp.args.JsonSave(value) for name, value in {**values, "digests": digests}.items()},
    }


def validation_loss(step: Path) -> float:
    """The loss noted with a step, infinite if there is none. Raises Damaged."""
    loss = read_about(step).get("metrics", {}).get("val_loss", math.inf)
    return loss if isinstance(loss, float) and not math.isnan(loss) else math.inf


def parts_of(state: State) -> dict[str, Arrays]:
    """The arrays of a state by the items of a checkpoint: weights, their mean if there is one, and the rest."""
    parts = {"model": weight_arrays(state.model), "rest": rest_arrays(state)}
    return parts if state.average is None else parts | {"average": weight_arrays(state.average)}


def rest_arrays(state: State) -> Arrays:
    """Everything but weights and their mean, by names that depend on no model's structure: its parts are named after
    its weights."""
    arrays: Arrays = {}
    for path, node in _rest_nodes(state):
        name = jax.tree_util.keystr(path)
        if isinstance(node, AbstractModule):
            arrays |= {f"{name}.{weight.name}": weight.array for weight in weights(node)}
        else:
            arrays[name] = node
    return arrays


def with_rest(state: State, arrays: Arrays) -> State:
    """`state` with everything but the model and the mean taken from the arrays of `rest_arrays`."""

    def fill(path: Any, node: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if not isinstance(node, AbstractModule):
            return arrays[name]
        return map_weights(lambda weight: weight.with_array(arrays[f"{name}.{weight.name}"]), node)

    rest = (state.opt_state, state.step, state.key)
    opt_state, step, key = jax.tree_util.tree_map_with_path(fill, rest, is_leaf=_is_module)
    return State(state.model, opt_state, step, key, state.average)


def _rest_nodes(state: State) -> Any:
    return jax.tree_util.tree_leaves_with_path((state.opt_state, state.step, state.key), is_leaf=_is_module)


def _is_module(node: Any) -> bool:
    return isinstance(node, AbstractModule)


def storable(arrays: Arrays) -> Arrays:
    """What of the arrays is handed to Orbax, by the names that it is stored under (`lipzoo.train.arrays.WORDS`)."""
    wide = {name for name, x in arrays.items() if x.dtype.itemsize == 8}
    return {f"{n}:{x.dtype}" if n in wide else n: _words(x) if n in wide else x for n, x in arrays.items() if x.size}


@jax.jit
def _words(x: Any) -> Any:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
