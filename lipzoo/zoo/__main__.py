"""`python -m lipzoo.zoo`: the trained models that come with the library, and what is proved of each."""

import dataclasses
import json
import sys
from typing import Any

import tyro

from lipzoo.evaluate.evaluation import fraction
from lipzoo.report.tables import terminal_table
from lipzoo.system.errors import UserError
from lipzoo.system.streams import make_console
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.numbers import format_power
from lipzoo.train.exported import read_notes
from lipzoo.train.reading import Damaged
from lipzoo.train.zoo import PREFIX, entries


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    json: bool = False
    """Print all that the files say of themselves, as a JSON list: certificates, evaluations, recipes, commands."""


def listed() -> list[dict[str, Any]]:
    """Every model's name, its file's size in bytes, and what is noted in it. Raises UserError if one is damaged."""
    found = []
    for name, path in entries().items():
        try:
            found.append({"name": PREFIX + name, "bytes": path.stat().st_size, **read_notes(path)})
        except Damaged as error:
            raise UserError(f"{path} is damaged: {error}; install lipzoo again") from error
    return found


def columns(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """A table: what was evaluated may be missing, as of models of text."""
    evaluations = [entry.get("evaluation") for entry in found]
    epsilons = sorted({epsilon for value in evaluations if value for epsilon in value["epsilons_l2"]})
    table = {"zoo:": [entry["name"].removeprefix(PREFIX) for entry in found]}
    table |= {"clean": ["" if value is None else f"{value['clean_accuracy']:.2%}" for value in evaluations]}
    for epsilon in epsilons:
        table[fraction(epsilon)] = [_certified(value, epsilon) for value in evaluations]
    bounds = [entry["certificate"]["certified"]["log10_lipschitz"] for entry in found]
    table["L"] = ["∞" if bound is None else format_power(bound) for bound in bounds]
    return table | {"kB": [f"{entry['bytes'] / 1000:,.0f}" for entry in found]}


def _certified(evaluation: dict[str, Any] | None, epsilon: float) -> str:
    if evaluation is None or epsilon not in evaluation["epsilons_l2"]:
        return ""
    return f"{evaluation['certified_accuracy'][evaluation['epsilons_l2'].index(epsilon)]:.2%}"


def _main() -> int:
    description = "Lists the trained models that come with the library: lipzoo certify zoo:NAME."
    line, found = tyro.cli(CommandLine, prog=program(), description=description), listed()
    if line.json:
        print(json.dumps(found, indent=2))
        return 0
    make_console().print(terminal_table(columns(found), "Accuracy, clean and certified at ℓ₂ distances; L: RMS → RMS"))
    for entry in found:
        print(f"{entry['name']}: {entry.get('command', 'how it was trained is not noted')}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
