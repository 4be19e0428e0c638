"""Ways to compute the step of the 145M GPT, measured one after the other, and the tables of what was measured."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.gpt145m_step import Compiled, Way, compiled, flops, parameters, product_rate, step_seconds
from benchmarks.tables import read_table, shown, to_csv, to_markdown
from lipzoo.devices.mesh import make_mesh
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.files import write_text

EXHAUSTED = "out of memory"
SHOWN = ("rows", "parts", "remat", "msign", "granularity", "window", "documents", "batch", "compilation, s", "seconds")
SHOWN += ("tokens a second", "model TFLOP/s", "utilisation", "gigabytes", "note")
PARTS = ("forward and backward, share", "optimizer, share", "constraint, share")


class Bench:
    """Measures ways until there is no time left, and keeps the tables up to date.

    **Attributes:** `rows`: what was measured or failed, by way. `fastest`: the program of the best so far.
    """

    def __init__(self, recipe: Recipe, variant: str, out: Path, budget: float, rounds: int, at_once: int, product: int):
        self.recipe, self.out, self.rounds, self.at_once = recipe, out, rounds, at_once
        self.end = time.monotonic() + budget
        mesh = make_mesh(recipe.training.mesh)
        self.product = product_rate(rounds, product, recipe.training.model_dtype) * mesh.size
        self.known = {"date": str(date.today()), "device": f"{mesh.size} × {jax.devices()[0].device_kind}"}
        self.known |= {"variant": variant, "precision": recipe.training.model_dtype, "jax": jax.__version__}
        self.rows: dict[Way, dict[str, Any]] = {}
        self.fastest: Compiled | None = None
        self.before = read_table(out / "gpt145m.csv")
        self.console = Console(width=None if Console().is_terminal else 220)

    def rate(self, ways: list[Way]) -> dict[Way, float]:
        """Tokens a second of those that run and that there is time for, as there is for the first. None runs twice."""
        new = [way for way in ways if way not in self.rows]
        while new and (not self.rows or time.monotonic() < self.end):
            chunk, new = new[: self.at_once], new[self.at_once :]
            self.measure([way for way in chunk if not self.hopeless(way)])
        return {way: row["tokens a second"] for way, row in self.rows.items() if way in ways and "seconds" in row}

    def measure(self, ways: list[Way]) -> None:
        """Compiles them at the same time, and times them one after the other."""
        with ThreadPoolExecutor(self.at_once) as pool:
            made = list(pool.map(self.attempt, ways))
        made.reverse()
        for way in ways:
            self.rows[way] = self.row(way, made.pop())  # No program is kept longer than it runs.
            self.write()
            self.tell(way)

    def hopeless(self, way: Way) -> bool:
        """Whether less did not fit."""
        return any(way.larger(other) for other, row in self.rows.items() if EXHAUSTED in row.get("note", ""))

    def attempt(self, way: Way) -> Compiled | Exception:
        """The compiled step, or why there is none."""
        try:
            return compiled(way.recipe(self.recipe))
        except Exception as error:  # Whatever it is, it is told, and the search goes on.
            return error

    def row(self, way: Way, made: Compiled | Exception) -> dict[str, Any]:
        """What is told of one way. One that failed beside others for want of memory is compiled again, alone."""
        if isinstance(made, Exception) and self.at_once > 1 and EXHAUSTED in reason(made):
            made = self.attempt(way)
        about = self.about(way)
        if isinstance(made, Exception):
            return about | {"note": reason(made)}
        about |= {"compilation, s": made.seconds, "gigabytes": made.gigabytes}
        if made.gigabytes > available():
            return about | {"note": f"{EXHAUSTED}: the device has {available():.3g} GB"}
        try:
            about |= self.speed(made.recipe, step_seconds(made, self.rounds))
        except Exception as error:  # As above.
            return about | {"note": reason(error)}
        if all(about["tokens a second"] > row.get("tokens a second", 0) for row in self.rows.values()):
            self.fastest = made
        return about

    def about(self, way: Way) -> dict[str, Any]:
        """What a row is of."""
        recipe = way.recipe(self.recipe)
        about = {"batch": f"{recipe.data.batch_size}×{way.length}", "parameters": parameters(recipe)}
        about |= {"rows": way.rows, "parts": recipe.training.accum_steps, "remat": way.remat, "msign": way.msign_dtype}
        about |= {"granularity": way.granularity, "window": way.window or "all"}
        return self.known | about | {"documents": "masked" if way.documents else "not masked"}

    def speed(self, recipe: Recipe, whole: float) -> dict[str, float]:
        """Of a step that takes so many seconds."""
        return {
            "seconds": whole,
            "tokens a second": recipe.data.batch_size * recipe.data.unit[1] / whole,
            "model TFLOP/s": flops(recipe) / whole / 1e12,
            "product TFLOP/s": self.product / 1e12,
            "utilisation": flops(recipe) / whole / self.product,
        }

    def add(self, way: Way, more: dict[str, Any]) -> None:
        """Adds to what is told of a way that ran."""
        self.rows[way] |= more
        self.write()

    def add_parts(self, way: Way, parts: dict[str, float]) -> None:
        """The parts of a step, as shares of the whole; they add up to more or less, since what is between is not."""
        whole = self.rows[way]["seconds"]
        self.add(way, {f"{name}, share": value / whole for name, value in parts.items()})

    def write(self) -> None:
        """Both tables, whole."""
        rows = [{name: shown(value) for name, value in row.items()} for row in self.rows.values()]
        write_text(self.out / "gpt145m.csv", to_csv([*self.before, *rows]))
        write_text(self.out / "gpt145m.md", f"{self.title()}\n\n{to_markdown(rows, SHOWN + PARTS)}")

    def tell(self, way: Way) -> None:
        """One line, as soon as it is known."""
        told = (f"{name} {shown(self.rows[way][name])};" for name in SHOWN if name in self.rows[way])
        self.console.print(*told, highlight=False)

    def title(self) -> str:
        """What all rows have in common."""
        return f"{', '.join(map(str, self.known.values()))}; one large product: {self.product / 1e12:.4g} TFLOP/s"

    def print(self) -> None:
        """The table of this run."""
        table = Table(*SHOWN, title=self.title())
        for row in self.rows.values():
            table.add_row(*(shown(row.get(name, "")) for name in SHOWN))
        self.console.print(table)
        for way, row in self.rows.items():
            if shares := [f"{name} {row[name]:.1%}" for name in PARTS if name in row]:
                self.console.print(f"{way.rows} windows at once: {'; '.join(shares)}")


def reason(error: Exception) -> str:
    """Why something does not run, in short."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return f"{EXHAUSTED}: {text[:100]}"
    return f"{type(error).__name__}: {text[:160]}"


def available() -> float:
    """Gigabytes that a device has for arrays, as far as it is known."""
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", float("inf")) / 1e9
