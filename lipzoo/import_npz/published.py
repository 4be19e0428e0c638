"""`python -m lipzoo.import_npz file.npz run_dir`: a published checkpoint as a run that certifies and samples.

Newhouse et al. 2025 stored trained transformers as npz files whose members are pickled objects: `args`, a dictionary of
settings, and `weights_checkpoint_0`, `weights_checkpoint_1`, …, dictionaries from 0, 1, … to nested lists. Unpickling
can run any code, so it is done here by a reader that admits nothing but plain containers, numbers, strings and arrays.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lipzoo.constraints import ConstraintName
from lipzoo.data import TextConfig
from lipzoo.data.text import SHAKESPEARE
from lipzoo.import_npz.reader import read_objects
from lipzoo.models import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import map_weights, weights
from lipzoo.train.checkpoint import save_model
from lipzoo.train.contents import note_recipe

CONSTRAINT_NAMES: Mapping[str, ConstraintName] = {
    "none": "none",
    "soft_cap": "soft-cap",
    "hard_cap": "hard-cap-poly",
    "spec_normalize": "spectral-normalize",
    "orthogonal": "stiefel",
    "spec_hammer": "spectral-hammer",
    "spec_wd": "spectral-weight-decay",
}
BLOCK_ORDER = ("v", "q", "k", "out", "up", "down")
"""The matrices of a block as they stand in the file, from the first block to the last."""


def published_recipe(args: Mapping[str, Any], alphabet: str) -> Recipe:
    """The recipe of a published transformer. Raises UserError where its settings have no counterpart."""
    for name, wanted in (("scales_learnable", False), ("layernorm_substitute", "none"), ("use_unembed", False)):
        if args.get(name, wanted) != wanted:
            raise UserError(f"its setting {name} = {args[name]!r} has no counterpart here")
    missing = {"num_heads", "d_embed", "num_blocks", "vocab_size", "project", "w_max"} - set(args)
    if missing:
        raise UserError(f"its settings lack {', '.join(sorted(missing))}: only transformers are imported")
    model = GPTConfig(
        depth=args["num_blocks"],
        width=args["d_embed"],
        heads=args["num_heads"],
        granularity="matrix",
        gelu_divisor=1.1289,
        blocks_mass=float(args["blocks_mass"]),
        zero_init=args["zero_init"],
        softmax_scale=float(args["softmax_scale"]),
        residual_scale=float(args["residual_scale"]),
        final_scale=float(args["final_scale"]),
    )
    optimizer = OptimizerConfig(
        optimizer="muon" if args["optimizer"] == "muon" else "adamw",
        lr=float(args["lr"]),
        beta1=float(args["beta1"]),
        beta2=float(args["beta2"]),
        weight_decay=float(args["wd"]),
        schedule="constant" if args["schedule"] == "none" else args["schedule"],
        embed_inflation=float(args["max_embed_inflation_factor"]),
    )
    constraint = ConstraintConfig(
        _constraint_name(args["project"]), sigma_max=float(args["w_max"]), spectral_wd=float(args["spectral_wd"])
    )
    data = TextConfig(data="shakespeare", alphabet=alphabet)
    return Recipe("published", model, data, optimizer, constraint, TrainingConfig(steps=max(args["steps"], 1)))


def _constraint_name(project: Mapping[str, str]) -> ConstraintName:
    name = project["default"]
    if name not in CONSTRAINT_NAMES:
        raise UserError(f"its constraint {name!r} has no counterpart here")
    return CONSTRAINT_NAMES[name]


def published_arrays(stored: Mapping[int, Sequence[Any]], depth: int) -> dict[str, Float[np.ndarray, "..."]]:
    """The weights of one checkpoint by their names here: blocks stacked, the embedding with tokens in rows."""
    matrices = [np.asarray(stored[index], np.float32) for index in range(len(stored))]
    size = len(BLOCK_ORDER)
    if len(matrices) != 2 + size * depth:
        raise UserError(f"it holds {len(matrices)} matrices where {depth} blocks make {2 + size * depth}")
    arrays = {"embedding": matrices[0].T[:, :, None], "head": matrices[-1]}
    for place, name in enumerate(BLOCK_ORDER):
        arrays[f"blocks.{name}"] = np.stack([matrices[1 + size * block + place] for block in range(depth)])
    return arrays


def import_npz(file: Path, run: Path, alphabet: str = "") -> list[Path]:
    """Writes every checkpoint of a published npz file into a run. Returns their paths, oldest first."""
    objects = read_objects(file)
    try:
        if not isinstance(objects.get("args"), dict):
            raise UserError("it holds no args, the settings that published checkpoints begin with")
        recipe = published_recipe(objects["args"], alphabet or _default_alphabet(objects["args"]["vocab_size"]))
        depth = objects["args"]["num_blocks"]
        count = sum(name.startswith("weights_checkpoint_") for name in objects)
        arrays = [published_arrays(objects[f"weights_checkpoint_{index}"], depth) for index in range(count)]
        if not arrays:
            raise UserError("it holds no weights_checkpoint_0")
        if refusal := Recipe.from_json(recipe.to_json()).model.conflict() or recipe.data.conflict():
            raise UserError(refusal)
        models = [_model(recipe, part) for part in arrays]
    except UserError as error:
        raise UserError(f"{file} is not imported: {error}") from error
    except Exception as error:  # Whatever values of another type make of these lines.
        raise UserError(f"{file} is not laid out as published checkpoints are ({error!r})") from error
    if (run / "recipe.json").exists() or (run / "checkpoints").exists():
        raise UserError(f"{run} already holds a run: choose another directory")
    run.mkdir(parents=True, exist_ok=True)
    note_recipe(run, recipe)
    return [save_model(run, index, model, recipe) for index, model in enumerate(models)]


def _default_alphabet(size: int) -> str:
    if size == len(SHAKESPEARE):
        return SHAKESPEARE
    placeholders = "".join(map(chr, range(33, 33 + size)))
    print(f"warning: --alphabet is not given, so tokens stand as {placeholders[:5]}…", file=sys.stderr)
    return placeholders


def _model(recipe: Recipe, arrays: Mapping[str, np.ndarray]) -> Any:
    if recipe.data.sizes.inputs != arrays["head"].shape[0]:
        raise UserError(
            f"--alphabet has {recipe.data.sizes.inputs} characters, the file {arrays['head'].shape[0]} tokens"
        )
    abstract = recipe.abstract_model()
    for weight in weights(abstract):
        if weight.array.shape != arrays[weight.name].shape:
            shapes = f"{arrays[weight.name].shape} where {weight.array.shape} is expected"
            raise UserError(f"its {weight.name} has the shape {shapes}")
    return map_weights(lambda w: w.with_array(jnp.asarray(arrays[w.name])), abstract)
