"""What the first stored format meant, so that its checkpoints can be read for ever. Nothing here follows the code.

It had no number. Its recipes do not tell a model's or a data source's kind, and its optimizers' states are named after
the places of weights in the module tree, as in `[0][0].momentum.stack.blocks.layers[0].branch.q.array`.
"""

import re
from collections.abc import Mapping
from typing import Any

PLACE = re.compile(r"(.+?\.(?:momentum|mu|nu))\.(.+)\.array")
PARTS = {"0": "attention", "1": "mlp"}
"""The two branches of a block."""
RULES = {
    r"embedding\.table": lambda m: "embedding",
    r"head\.weight": lambda m: "head",
    r"body\.layers\[\d+\]\.(weight|bias)": lambda m: "head" + _bias(m[1]),
    r"body\.layers\[(\d+)\](?:\.branch)?\.layers\[0\]\.(weight|bias)": lambda m: f"layers.{int(m[1]) - 1}{_bias(m[2])}",
    r"stack\.blocks\.layers\[0\]\.branch(?:\.layers\[1\])?\.(q|k|v|out)": lambda m: f"blocks.{m[1]}",
    r"stack\.blocks\.layers\[0\]\.branch(?:\.layers\[1\])?\.bias": lambda m: "blocks.position",
    r"stack\.blocks\.layers\[1\]\.branch(?:\.layers\[1\])?\.module\.layers\[0\]\.weight": lambda m: "blocks.up",
    r"stack\.blocks\.layers\[1\]\.branch(?:\.layers\[1\])?\.module\.layers\[2\]\.weight": lambda m: "blocks.down",
    r"stack\.blocks\.layers\[([01])\]\.strength": lambda m: f"blocks.{PARTS[m[1]]}.strength",
    r"stack\.blocks\.layers\[([01])\]\.branch\.layers\[0\]\.layers\[1\]\.(gain|bias)": lambda m: (
        f"blocks.{PARTS[m[1]]}.center.{m[2]}"
    ),
}
"""The names of weights by their places in the models of the first format."""


def _bias(kind: str) -> str:
    return ".bias" if kind == "bias" else ""


def current_name(key: str) -> str:
    """The name of an array of an optimizer's state since format 2: its weight's name stands for its place."""
    if place := PLACE.fullmatch(key):
        for pattern, name in RULES.items():
            if match := re.fullmatch(pattern, place[2]):
                return f"{place[1]}.{name(match)}"
    return key


def with_kinds(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of the first format with the kinds of its model and its data, told by the fields that only they had."""
    model, data = recipe["model"], recipe["data"]
    source = "tokens" if "train_shards" in data else "text" if "seq_len" in data else "images"
    kinds = {"model": "gpt" if "heads" in model else "mlp", "data": source}
    return {**recipe, **{name: {"kind": kind, **recipe[name]} for name, kind in kinds.items()}}
