"""Many runs of a recipe: every combination of the values given, or samples, with what is certified of each.

    lipzoo sweep cifar_mlp --lr log:0.01:1:8 --sigma-max 1 2 4 --constraint soft-cap hard-cap --seed 0 1 2
    lipzoo sweep cifar_mlp --lr log:0.01:1 --sigma-max log:0.5:8 --samples 200
    lipzoo sweep cifar_mlp --config sweep.json --job-idx 7

Any field of a recipe can be given any number of values: words, or ranges by factors (log:LOW:HIGH:COUNT) or even steps
(lin:LOW:HIGH:COUNT). Results go to --out run by run; the same command goes on where an earlier one ended, and one with
more values runs what is new. `lipzoo frontier` draws what was found.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lipzoo.config.fields import field_refusal, flag
from lipzoo.config.ranges import Count, Range, Seed, Whole
from lipzoo.sweep.axes import MOST, SamplerName, axes_of, grid, samples, split_words, without
from lipzoo.sweep.runs import Base, Run, base_of, runs_of, settings_of, share
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import guarded, program


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep takes beside the fields of its recipe."""

    config: UserPath | None = None
    """JSON file with a list of settings, as in [{"lr": 0.1, "seed": 0}]; combined with the values of other flags."""
    samples: Annotated[int, Range(0, MOST)] = 0
    """Draw so many settings instead of all combinations; each is run with every --seed."""
    sampler: SamplerName = "sobol"
    """How they are drawn: sobol fills the space evenly, random draws independently."""
    sample_seed: Seed = 0
    """Seed of the samples."""
    job_idx: Annotated[int, Range(-1)] = -1
    """Run this one alone, from 0: for the arrays of a scheduler."""
    jobs: str = "1/1"
    """Run part I of N, from 1: 2/4 runs the second quarter. All parts may write to the same folder."""
    out: UserPath | None = None
    """Folder of the results; by default runs/sweep/RECIPE."""
    variant: str | None = None
    """Variant of the recipe to start from, where it has several."""
    workers: Whole = 0
    """Processes: 0 for one a core, or one where there are accelerators."""
    together: Whole = 0
    """Runs in one compiled step; 0: one on CPUs, on accelerators as many as are measured to be fastest."""
    status: bool = False
    """Say what is done, and run nothing."""
    launch: Literal["", "slurm", "local"] = ""
    """Hand the runs to SLURM in --parts jobs (pip install 'lipzoo[slurm]'), or to this machine, to try that."""
    parts: Count = 1
    """Jobs for --launch."""
    launch_options: tuple[str, ...] = ()
    """KEY=VALUE pairs of submitit for --launch, such as timeout_min=60 slurm_partition=gpu gpus_per_node=1."""


LAUNCHING = ("launch", "parts", "launch-options")


def parse(argv: Sequence[str]) -> tuple[str, Sweep, dict[str, list[str]]]:
    """The recipe's name, the options of the sweep, and the words of each field. Raises UserError."""
    own = [field.name.replace("_", "-") for field in dataclasses.fields(Sweep)] + ["help", "no-status"]
    helped = {"-h", "--help"} & set(argv)
    name = argv[0].replace("-", "_") if argv and not argv[0].startswith("-") else ""
    kept, words = split_words(argv[bool(name) :], own) if not helped else (["--help"], {})
    line = tyro.cli(Sweep, args=kept, prog=f"{program()} RECIPE", description=__doc__)
    if not name:
        raise UserError(f"{program()} takes a recipe first, as in: lipzoo sweep digits_mlp --lr log:0.01:1:8")
    if refusal := field_refusal(line):
        raise UserError(refusal)
    if line.job_idx >= 0 and line.jobs != "1/1":
        raise UserError("--job-idx runs one setting, and --jobs a part of them: leave one out")
    if line.launch and (line.job_idx >= 0 or line.jobs != "1/1"):
        raise UserError("--launch makes the --jobs itself: leave --jobs and --job-idx out")
    if not line.launch and (line.parts > 1 or line.launch_options):
        raise UserError("--parts and --launch-options have no effect without --launch: leave them out")
    return name, line, words


def planned(base: Base, line: Sweep, words: dict[str, list[str]]) -> list[Run]:
    """The runs that are asked for: each once, in their order. Raises UserError if that says nothing."""
    from lipzoo.system.files import read_json

    axes = axes_of(base.recipe, words)
    settings = samples(axes, line.samples, line.sampler, line.sample_seed) if line.samples else grid(axes)
    if line.config is not None:
        try:
            listed = settings_of(read_json(line.config), base.recipe)
        except (OSError, ValueError) as error:
            raise UserError(f"--config {line.config} cannot be read ({error})") from error
        if twice := {name for one in listed for name in one} & {axis.name for axis in axes}:
            raise UserError(f"{flag(min(twice))} is in --config, and a flag, too: leave one out")
        settings = [{**one, **other} for one in listed for other in settings]
    runs = runs_of(base, settings)
    if line.job_idx >= len(runs):
        raise UserError(f"--job-idx must be below the number of runs, {len(runs)}, got {line.job_idx}")
    return [runs[line.job_idx]] if line.job_idx >= 0 else share(runs, line.jobs)


def sweep(argv: Sequence[str]) -> int:
    """Runs what is asked for and is not done yet. Returns 0, or 1 if a run failed."""
    name, line, words = parse(argv)
    from lipzoo.sweep.schedule import Platform

    platform = Platform()
    base = base_of(name, line.variant)
    from lipzoo.sweep.drive import drive, summary
    from lipzoo.sweep.launch import launch
    from lipzoo.sweep.results import Results

    runs, folder = planned(base, line, words), line.out or Path("runs/sweep") / name
    if line.status:
        print(summary(runs, Results(folder, write=False)))
        return 0
    if line.launch:
        launch([name, *without(argv[1:], LAUNCHING)], folder, line.launch, line.parts, line.launch_options)
        return 0
    part = f"job {line.job_idx}" if line.job_idx >= 0 else line.jobs
    return drive(runs, folder, platform, workers=line.workers, together=line.together, part=part)


if __name__ == "__main__":
    sys.exit(guarded(lambda: sweep(sys.argv[1:])))
