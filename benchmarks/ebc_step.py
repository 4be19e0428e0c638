"""What EBC costs a step, and whether the divergence that it aims at is the one that it causes.

    python -m benchmarks.ebc_step

The GPT of `recipes.ebc_ablation`. Cost: steps with each budget in turn, so that other work on the machine meets all of
them; written to benchmarks/ebc_step.csv. Divergence: Adam at twice its best learning rate, applied KL over δ at every
clipped step, on the probe and on the rest of the batch, and how many times too large the budgets foretell it; written
to benchmarks/ebc_kl.csv and drawn in benchmarks/ebc_kl.png.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Array
from matplotlib.figure import Figure

from benchmarks import FOLDER, benchmark
from lipzoo.devices.mesh import make_mesh
from lipzoo.experiments.ebc_grid import Setting, Source, recipe_of
from lipzoo.optim import EBCConfig
from lipzoo.optim.ebc.divergence import mean_kl
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.ablation import Row, write_rows
from lipzoo.system.terminal import program
from lipzoo.train.state import init_state
from lipzoo.train.step import forward, step_of
from recipes.ebc_ablation import DEFAULTS

LR, DELTA = 0.032, 0.03
EBCS = {
    "off": EBCConfig(),
    "l1": EBCConfig(enable=True, target_kl=DELTA),
    "exact": EBCConfig(enable=True, aggregate="exact", target_kl=DELTA),
    "exact, refined": EBCConfig(enable=True, aggregate="exact", target_kl=DELTA, refine=1),
}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    steps: int = 300
    """Steps of every run, and steps that are timed."""
    batch_sizes: tuple[int, ...] = (16, 64)
    """Windows a step in the table of costs."""
    data: Source = "shakespeare"
    """What the GPT learns."""
    num_blocks: int = 3
    """Blocks of the GPT."""
    d_embed: int = 128
    """Width of the GPT."""
    out: Path = FOLDER
    """Folder that the tables and the picture are written to."""


def base(line: CommandLine, batch_size: int) -> Recipe:
    """Adam at twice its best learning rate, without EBC."""
    sizes = {"num_blocks": line.num_blocks, "d_embed": line.d_embed, "batch_size": batch_size, "steps": line.steps}
    grid = dataclasses.replace(DEFAULTS["shakespeare"], data=line.data, **sizes)
    return recipe_of(grid, Setting("adam", "none", None, "constant", 0.0, LR, 0)).complete()


def costs(line: CommandLine, batch_size: int) -> list[Row]:
    """Milliseconds of a step with each budget; overheads by the median of ratios of neighbours, and by means.

    Only the mean holds the share of what is done now and then: sweeps over the layers, and measurements.
    """
    recipe, mesh = base(line, batch_size), make_mesh()
    data = recipe.data.load(0)
    batches = list(data.batches(batch_size=batch_size, count=20, seed=0))
    recipes = {name: dataclasses.replace(recipe, ebc=ebc) for name, ebc in EBCS.items()}
    states: dict[str, Any] = {name: init_state(r, mesh) for name, r in recipes.items()}
    steps = {name: step_of(r, mesh) for name, r in recipes.items()}
    times: dict[str, list[float]] = {name: [] for name in EBCS}
    for round_ in range(line.steps + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            states[name], _ = step(states[name], batches[round_ % len(batches)])
            jax.block_until_ready(states[name])
            times[name].append(time.perf_counter() - start)
    plain = np.array(times["off"][1:])
    rows = []
    for name, values in times.items():
        own = np.array(values[1:])
        over = {
            "overhead_median": round(float(np.median(own / plain)) - 1, 4),
            "overhead_mean": round(float(own.mean() / plain.mean()) - 1, 4),
        }
        row = {"batch": f"{batch_size}×{recipe.data.unit[1]}", "ebc": name}
        rows.append({**row, "median_ms": round(1e3 * float(np.median(own)), 3), **over})
    return rows


def rest_kl(recipe: Recipe) -> Callable[[Any, Any, Array], Array]:
    """KL between two models on the windows that are not in the probe."""
    rows, _ = recipe.ebc.probe_shape(recipe.data.batch_size, recipe.data.unit[1])

    @jax.jit
    def kl(before: Any, after: Any, tokens: Array) -> Array:
        logits = [forward(model, tokens[rows:], None, "float32") for model in (before, after)]
        return mean_kl(*(z.reshape(-1, z.shape[-1]) for z in logits))

    return kl


def divergences(line: CommandLine, name: str) -> list[Row]:
    """What every step of a run foretold and caused. The l1 run has a δ of its own: it would hardly move otherwise."""
    ebc = dataclasses.replace(EBCS[name], update_every=1 if "exact" in name else 20)
    ebc = dataclasses.replace(ebc, target_kl=2.0) if name == "l1" else ebc
    recipe = dataclasses.replace(base(line, 16), ebc=ebc)
    state, step, kl = init_state(recipe, make_mesh()), step_of(recipe, make_mesh()), rest_kl(recipe)
    rows = []
    for index, batch in enumerate(recipe.data.load(0).batches(batch_size=16, count=line.steps, seed=0)):
        before = jax.tree.map(np.array, state.model)
        state, told = step(state, batch)
        values = {key: float(value) for key, value in told.items()}
        foretold = values["ebc_delta"] * (values["ebc_c"] * values["ebc_budget"] / values["ebc_tau"]) ** 2
        measured = index % ebc.update_every == 0
        row = {"ebc": name, "step": index + 1, "delta": values["ebc_delta"], "c": values["ebc_c"], "foretold": foretold}
        probe = values["ebc_kl"] if measured else float("nan")
        rows.append({**row, "probe": probe, "rest": float(kl(before, state.model, batch["input"]))})
    return rows


def plot(rows: list[Row], path: Path) -> None:
    """Applied over target divergence at clipped steps, on the probe and on the rest of the batch."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("probe", "rest"), strict=True):
        for name, color in (("exact", "C1"), ("exact, refined", "C0")):
            clipped = [row for row in rows if row["ebc"] == name and row["c"] < 1]
            points = [row["step"] for row in clipped], [row[key] / row["delta"] for row in clipped]
            axes.plot(*points, ".", color=color, label=name, markersize=4)
        axes.axhspan(0.8, 1.2, color="grey", alpha=0.2)
        title = {"probe": "on the probe", "rest": "on the rest of the batch"}[key]
        axes.set(title=f"applied KL / δ at clipped steps, {title}", xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, writes, draws and prints."""
    line = tyro.cli(
        CommandLine, prog=program(), description="What EBC costs a step, and what divergence its steps cause."
    )
    table = [row for size in line.batch_sizes for row in costs(line, size)]
    write_rows(line.out / "ebc_step.csv", table)
    for row in table:
        print(row)
    rows = [row for name in ("l1", "exact", "exact, refined") for row in divergences(line, name)]
    write_rows(line.out / "ebc_kl.csv", rows)
    plot(rows, line.out / "ebc_kl.png")
    for name in ("l1", "exact", "exact, refined"):
        for key in ("probe", "rest"):
            chosen = [r for r in rows if r["ebc"] == name and r["c"] < 1 and not np.isnan(r[key])]
            if not chosen:
                print(f"{name}, {key}: no clipped step was measured")
                continue
            ratio = np.array([r[key] / r["delta"] for r in chosen])
            over = np.median([r["foretold"] / r[key] for r in chosen])
            spread = np.quantile(ratio, [0, 0.05, 0.5, 0.95, 1])
            inside = (np.abs(ratio - 1) <= 0.2).mean()
            print(f"{name}, {key}: {len(chosen)} steps, KL/δ {np.round(spread, 3)}, ±20%: {inside:.1%}, {over:.1f} ×")


if __name__ == "__main__":
    benchmark(main)
