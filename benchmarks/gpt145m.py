"""Tokens a second, utilisation, memory and the parts of a step of the 145M GPT, over the ways that it can be computed.

    python -m benchmarks.gpt145m                                   # the whole model on a GPU, a small one on a CPU
    python -m benchmarks.gpt145m --variant baseline --budget 300 --profile /tmp/trace
    python -m benchmarks.gpt145m --rows 32 --accum-steps 0 --remat products --msign-dtypes bfloat16     # one way

It goes along one axis after the other: windows at once, recomputation, precision of Muon's iteration, parts of a batch.
Each way is compiled once and timed as a whole step. Then it profiles the best, times its parts, and in what is left of
the budget measures what it would take without masks or otherwise changed. What does not fit or run has a row that says
so.

The work counted is that of the model: 6 operations per weight and token, and 12·time·width per block and token for
attention (all pairs, though half of them are masked and a window leaves fewer). Utilisation is that work over what the
device does in one large product, measured here, in the same time. Rows are added to gpt145m.csv after each way; those
of this run are in gpt145m.md, kernels of the best in gpt145m_kernels.csv.
"""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from benchmarks.descent import ascend
from benchmarks.gpt145m_bench import EXHAUSTED, Bench
from benchmarks.gpt145m_step import Compiled, Way, part_seconds, trace
from benchmarks.kernels import KINDS, kernels, newest_trace, places
from benchmarks.tables import shown, to_csv
from lipzoo.layers.stack import Remat
from lipzoo.models import GPTConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_bytes, write_text
from lipzoo.system.terminal import program
from lipzoo.theory.precision import Precision
from recipes.gpt145m import VARIANTS

SMALL = {"depth": 4, "width": 192, "heads": 6}
"""The model where there is no accelerator."""
PROFILED = 3
"""Steps of a profile."""
MOST = 30
"""Kernels that are printed."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    variant: str = "sigma1"
    """Settings of `recipes.gpt145m`."""
    mesh: str = "1"
    """Devices, as for the recipe."""
    rows: tuple[int, ...] = ()
    """Windows that a device works on at once; by default 32, 16, 48, 64 and 96 on a GPU, 8 and 4 on a CPU."""
    accum_steps: tuple[int, ...] = (0, 1)
    """Parts of a batch; 0 for as many as make the recipe's batch, of 192 windows (8 on a CPU)."""
    remat: tuple[Remat, ...] = ("products", "none", "blocks")
    """What the backward pass computes anew."""
    msign_dtypes: tuple[str, ...] = ("bfloat16", "float32")
    """Precisions of Muon's orthogonalization."""
    seq_len: int = 0
    """Tokens of a window; by default 2048 as in the recipe, 256 on a CPU."""
    documents: bool = True
    """Mask documents from one another, as the recipe does."""
    depth: int = 0
    """Blocks, if not the recipe's 12, or 4 on a CPU."""
    width: int = 0
    """Features of a token, if not 768, or 192 on a CPU."""
    heads: int = 0
    """Attention heads, if not 6."""
    model_dtype: Precision | None = None
    """Precision of forward and backward; by default bfloat16 on a GPU, float32 on a CPU."""
    budget: float = 900.0
    """Seconds after which no other way is begun; what is being measured then ends, and the parts of the best follow."""
    compile_at_once: int = 0
    """Ways that are compiled at the same time, by default 3 on a GPU and 1 on a CPU. None is timed meanwhile."""
    rounds: int = 5
    """Steps that are timed."""
    product: int = 0
    """Rows and columns of the large product; by default 16,384 on a GPU, 2048 on a CPU."""
    profile: Path | None = None
    """Where to write a trace of steps of the best way, and the compiled program."""
    out: Path = FOLDER
    """Folder of the tables."""


def variant(name: str) -> Recipe:
    """The settings of this name."""
    if name not in VARIANTS:
        raise UserError(f"there is no variant {name!r}; choose from {', '.join(VARIANTS)}")
    return VARIANTS[name]


def filled(line: CommandLine) -> CommandLine:
    """The command line with what depends on the device."""
    small = jax.default_backend() == "cpu"
    default: dict[str, Any] = {
        "rows": (8, 4) if small else (32, 16, 48, 64, 96),
        "seq_len": 256 if small else 2048,
        "model_dtype": "float32" if small else "bfloat16",
        "compile_at_once": 1 if small else 3,
        "product": 2048 if small else 16384,
        **({} if not small else SMALL),
    }
    return dataclasses.replace(line, **{name: value for name, value in default.items() if not getattr(line, name)})


def recipe_of(line: CommandLine) -> Recipe:
    """The variant, made small where there is no accelerator."""
    recipe = variant(line.variant)
    size = {name: getattr(line, name) for name in SMALL if getattr(line, name)}
    model: Any = dataclasses.replace(recipe.model, **size)
    return dataclasses.replace(
        recipe,
        model=model,
        data=dataclasses.replace(recipe.data, batch_size=8 if jax.default_backend() == "cpu" else 192),
        training=dataclasses.replace(recipe.training, mesh=line.mesh, model_dtype=line.model_dtype),
    )


def first_way(line: CommandLine, recipe: Recipe) -> Way:
    """Where the search begins: what the recipe does at the end of a run, when its window has grown."""
    assert isinstance(recipe.model, GPTConfig)
    window = recipe.model.window if line.seq_len == 2048 else line.seq_len * 7 // 8
    numbers = line.rows[0], line.accum_steps[0], line.remat[0], line.msign_dtypes[0]
    return Way(*numbers, recipe.model.granularity, line.seq_len, window, line.documents)


def variations(best: Way) -> list[Way]:
    """What is no choice of how to compute the same, and so not searched: what it would save."""
    changes: list[dict[str, Any]] = [
        {"documents": False},
        {"documents": False, "window": 0},
        {"window": best.window // 14},  # That of the first stage.
        {"granularity": "matrix" if best.granularity == "head" else "head"},
        {"length": best.length // 2, "rows": 2 * best.rows, "window": best.window // 2},
    ]
    return [dataclasses.replace(best, **change) for change in changes]


def search(bench: Bench, line: CommandLine) -> Way | None:
    """The fastest way of those on the axes; None if nothing ran."""
    start = first_way(line, bench.recipe)
    if not bench.rate([start]) and EXHAUSTED not in bench.rows[start]["note"]:
        start = dataclasses.replace(start, documents=False)  # Better some numbers than none; the row says why.
    axes = {"rows": line.rows, "remat": line.remat, "msign_dtype": line.msign_dtypes, "parts": line.accum_steps}
    best = ascend(start, axes, bench.rate)
    if not bench.rate([best]):
        return None
    bench.add(best, {"note": "fastest"})
    return best


def profile(made: Compiled, line: CommandLine, folder: Path) -> None:
    """Writes a trace, the program, and a table of the kernels, of which those that take most time are printed."""
    text = made.step.as_text()
    trace(made, PROFILED, str(folder))
    write_bytes(folder / "program.txt.gz", gzip.compress(text.encode()))
    found = kernels(newest_trace(folder), PROFILED, places(text))
    rows = [{name: shown(value) for name, value in row.items()} for row in found]
    write_text(line.out / "gpt145m_kernels.csv", to_csv(rows))
    kinds = {kind: sum(row["share"] for row in found if row["kind"] == kind) for kind in dict(KINDS)}
    table = Table(*rows[0] if rows else (), title=", ".join(f"{kind} {share:.1%}" for kind, share in kinds.items()))
    for row in rows[:MOST]:
        table.add_row(*(value[:60] for value in row.values()))
    Console(width=200).print(table)


def main() -> None:
    """Searches, and tells of the best way where its time goes."""
    line = filled(tyro.cli(CommandLine, prog=program(), description="A step of the 145M GPT."))
    recipe = recipe_of(line)
    first_way(line, recipe).recipe(recipe).check()
    line.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(recipe, line.variant, line.out, line.budget, line.rounds, line.compile_at_once, line.product)
    best = search(bench, line)
    if best is None or bench.fastest is None:
        raise UserError("no way to compute the step ran: the notes of the table say why")
    if line.profile is not None:
        profile(bench.fastest, line, line.profile)
    bench.add_parts(best, part_seconds(best.recipe(recipe), line.rounds))
    bench.rate(variations(best))
    bench.print()


if __name__ == "__main__":
    benchmark(main)
