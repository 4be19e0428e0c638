"""What --help shows of a recipe: by subject, and without what few need, unless it is --help-all."""

import dataclasses
from typing import Annotated

import tyro
from tyro.conf import AvoidSubcommands, Suppress, arg

from lipzoo.cli.line import CommandLine
from lipzoo.devices.processes import ProcessConfig
from lipzoo.optim.ebc.config import EBCConfig
from lipzoo.recipe.recipe import Recipe

FOLDED = "Also --ebc.… (a trust region) and runs of several processes: --help-all."


@dataclasses.dataclass(frozen=True)
class _ShortRecipe(Recipe):
    """A recipe whose trust region is not shown."""

    ebc: Suppress[EBCConfig] = EBCConfig()


@dataclasses.dataclass(frozen=True)
class _ShortLine(CommandLine):
    """A command line whose processes are not shown."""

    recipe: Annotated[_ShortRecipe, arg(name="")] = _ShortRecipe()
    processes: Suppress[ProcessConfig] = ProcessConfig()


def print_short(default: Recipe, program: str, description: str) -> None:
    """Prints the help of a recipe without what is folded, and exits."""
    recipe = _ShortRecipe(**{field.name: getattr(default, field.name) for field in dataclasses.fields(default)})
    tyro.cli(
        _ShortLine,
        args=["--help"],
        default=_ShortLine(recipe=recipe),
        config=(AvoidSubcommands,),
        prog=program,
        description=f"{description} {FOLDED}",
    )
