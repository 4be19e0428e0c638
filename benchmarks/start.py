"""From the shell to the first step, to the certificate and to the first character, against `import jax` and compiling.

    python -m benchmarks.start [--beside FOLDER]

It trains two small runs in a folder of its own, and then starts the commands in turn, round by round, with and without
what has been compiled before; medians are reported. --beside takes another copy of this library, to be compared.
"""

import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import FOLDER, benchmark
from lipzoo.config.ranges import Count
from lipzoo.data.download import cache_dir
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import program

DRIVER = """
import os, runpy, sys
import jax.monitoring
from lipzoo.report.metrics import Reporter

compiling = 0.0

def listen(event, seconds, **more):
    global compiling
    if event.endswith(("jaxpr_to_mlir_module_duration", "backend_compile_duration")):
        compiling += seconds

def leave(*arguments):
    print(f"compiling {compiling}", file=sys.stderr, flush=True)
    os._exit(0)

jax.monitoring.register_event_duration_secs_listener(listen)
Reporter.step = leave
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    leave()
"""
"""Runs a command up to its first step or its end, and says how long jax lowered and compiled."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    rounds: Count = 5
    """Rounds in which every command is started."""
    steps: Count = 1
    """Steps of the two runs."""
    length: Count = 500
    """Characters to sample."""
    beside: UserPath | None = None
    """Folder with another copy of the library, to be started in turn with this one."""


def environment(tree: Path, cache: Path | None) -> dict[str, str]:
    """Of a process that uses this copy of the library, and keeps what it compiles there or nowhere."""
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if cache is None else {"LIPZOO_DATA_DIR": str(cache)}
    # What is imported is compiled to bytes once, as for users.
    return {**os.environ, **kept, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""}


def started(words: list[str], where: Mapping[str, str], first: int = 0) -> tuple[float, float, str, str]:
    """Seconds that a command takes, or that it takes to print so many characters; those of the processor; what it
    prints on stdout and on stderr."""
    before, start = os.times(), time.perf_counter()
    pipe, folder = subprocess.PIPE, where["PYTHONPATH"]  # Python looks into the current folder first.
    with subprocess.Popen(words, env=where, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        head = process.stdout.read(first)
        seconds = time.perf_counter() - start
        rest, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {errors}")
    after = os.times()
    whole = time.perf_counter() - start
    return seconds if first else whole, after.children_user - before.children_user, head + rest, errors


def commands(runs: Path, length: int) -> dict[str, tuple[list[str], int]]:
    """Each with what it is called, and how many characters are printed when it is done, or 0 for all."""
    python = [sys.executable, "-m"]
    digits = ["recipes.digits_mlp", "--run-dir", "@"]
    return {
        "import jax": ([sys.executable, "-c", "import jax"], 0),
        "recipes.digits_mlp, first step": ([sys.executable, "-c", DRIVER, *digits], 0),
        "lipzoo.certify, table": ([*python, "lipzoo.certify", str(runs / "digits")], 0),
        "lipzoo.sample, first character": (
            [*python, "lipzoo.sample", str(runs / "text"), "--length", str(length)],
            2,  # The first is the prompt.
        ),
    }


def compile_seconds(words: list[str], tree: Path) -> float:
    """What jax lowers and compiles in a command, without what was compiled before."""
    module = words[words.index("-m") + 1 :] if "-m" in words else words[3:]
    errors = started([sys.executable, "-c", DRIVER, *module], environment(tree, None))[3]
    return float(re.findall(r"compiling ([\d.e-]+)", errors)[-1])


def trained(folder: Path, steps: int) -> None:
    """A run on digits, and one of the default character GPT."""
    text = "shakespeare" if (cache_dir() / "tinyshakespeare/input.txt").exists() else "pydoc"
    short = ["--steps", str(steps), "--val-interval", "1000000", "--save-interval", "1000000"]
    small = ["--batch-size", "4", "--accum-steps", "1", "--seq-len", "32"]
    recipes = {"digits": ["digits_mlp"], "text": ["shakespeare_gpt", "--data", text, *small]}
    for name, (recipe, *more) in recipes.items():
        words = [sys.executable, "-m", f"recipes.{recipe}", *short, *more, "--run-dir", str(folder / name)]
        started(words, environment(FOLDER.parent, cache_dir()))


def main() -> None:
    """Prints the table."""
    line = tyro.cli(CommandLine, prog=program(), description="From the shell to the first step.")
    trees = {"": FOLDER.parent} | ({} if line.beside is None else {"beside: ": line.beside.absolute()})
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        trained(here, line.steps)
        known = commands(here, line.length)
        caches = {"": None, ", compiled before": here / "cache"}
        times: dict[str, list[tuple[float, float, float]]] = {}
        for number in range(line.rounds + 1):  # The first fills the caches.
            for (tree, root), (cache, place) in ((t, c) for t in trees.items() for c in caches.items()):
                for name, (words, first) in known.items():
                    fresh = [str(here / f"{number}{tree[:1]}{bool(cache)}") if word == "@" else word for word in words]
                    seconds, processor, _, told = started(fresh, environment(root, place), first)
                    rate = re.search(r"([\d,]+) \w+ a second", told)
                    row = seconds, processor, float(rate[1].replace(",", "")) if rate else 0.0
                    times.setdefault(f"{tree}{name}{cache}", []).append(row)
        known["recipes.digits_mlp, first step"][0][-1] = str(here / "counted")
        compiling = {
            name: compile_seconds(words, FOLDER.parent) for name, (words, _) in known.items() if "jax" not in name
        }
    show({name: [statistics.median(c) for c in zip(*rows[1:], strict=True)] for name, rows in times.items()}, compiling)


def show(medians: Mapping[str, list[float]], compiling: Mapping[str, float]) -> None:
    """Prints medians by command, each beside `import jax` and its compilation, in the same rounds."""
    columns = ("seconds", "CPU", "import jax", "compiling", "ratio", "characters a second")
    table = Table("from the shell to", *columns, title=f"{date.today()}, {len(os.sched_getaffinity(0))} cores")
    for name, (seconds, processor, rate) in medians.items():
        plain = name.removeprefix("beside: ").removesuffix(", compiled before")
        if plain in compiling:
            jax = medians[name.replace(plain, "import jax")][0]
            cells = [
                f"{x:.2f}" for x in (seconds, processor, jax, compiling[plain], seconds / (jax + compiling[plain]))
            ]
            table.add_row(name, *cells, f"{rate:,.0f}" if rate else "")
    Console(width=130).print(table)


if __name__ == "__main__":
    benchmark(main)
