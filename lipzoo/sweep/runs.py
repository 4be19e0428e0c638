"""The runs of a sweep: which recipes its settings make, each once, and which of them cannot be run."""

import dataclasses
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lipzoo.config.fields import field_refusal
from lipzoo.recipe.largest_step import fitted
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.unused import idle
from lipzoo.sweep.settings import Setting, field_named, flags_of, typed, value_of, with_setting
from lipzoo.system.errors import UserError


class Base(NamedTuple):
    """The recipe that settings are applied to, and how it is called on a command line."""

    recipe: Recipe
    command: str


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    **Attributes:**

    - `key`: the same for the same recipe, wherever and whenever it is run.
    - `setting`: the values that it was made from; those that do nothing are None.
    - `command`: what trains it alone.
    - `refusal`: why it cannot be run, or None.
    """

    key: str
    setting: Setting
    recipe: Recipe
    command: str
    refusal: str | None = None


def base_of(name: str, variant: str | None) -> Base:
    """The recipe of this name that comes with the library, or of a module with a `RECIPE`, in one of its variants.

    **Raises:** UserError if there is none.
    """
    known = importlib.import_module("recipes")
    names = [found for _, found, _ in pkgutil.iter_modules(known.__path__)]
    if "." not in name and name not in names:
        raise UserError(f"there is no recipe {name!r}; choose from {', '.join(names)}, or name a module with a RECIPE")
    path = name if "." in name else f"recipes.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no recipe {name!r}: {error}") from error
    variants = getattr(module, "VARIANTS", {})
    if variant is not None and variant not in variants:
        known = f"choose from {', '.join(variants)}" if variants else f"{name} has none"
        raise UserError(f"there is no --variant {variant!r}: {known}")
    chosen = variants[variant] if variant else getattr(module, "RECIPE", None)
    if not isinstance(chosen, Recipe):
        raise UserError(f"{name} has no RECIPE that can be swept")
    return Base(chosen, f"python -m {path}" + (f" --variant {variant}" if variant else ""))


def runs_of(base: Base, settings: Iterable[Setting]) -> list[Run]:
    """The runs that settings make, in their order, each once: fields that do nothing beside the others are left out."""
    return list({run.key: run for run in (_run(base, setting) for setting in settings)}.values())


def _run(base: Base, setting: Setting) -> Run:
    recipe = with_setting(base.recipe, setting)
    nothing = {name for name in setting if idle(name, recipe)}
    recipe = with_setting(recipe, {name: value_of(base.recipe, name) for name in nothing})
    effective = {name: value for name, value in setting.items() if name not in nothing}
    command = " ".join([base.command, *flags_of(effective)])
    told = {name: None if name in nothing else value for name, value in setting.items()}
    try:
        if refusal := field_refusal(recipe):
            raise UserError(refusal)
        ready = fitted(recipe)
    except UserError as error:
        return Run(key_of(recipe), told, recipe, command, str(error))
    return Run(key_of(recipe), told, ready, command)


def key_of(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits that tell a recipe from all others."""
    return hashlib.sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def settings_of(value: object, recipe: Recipe) -> list[Setting]:
    """The settings that a JSON list of objects holds. Raises UserError if it is none."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise UserError('--config must hold a list of settings: [{"lr": 0.1, "seed": 0}, {"lr": 0.2}]')
    typed_of = [{name: typed(name, field_named(recipe, name), v) for name, v in item.items()} for item in value]
    return [{name.replace("-", "_"): v for name, v in item.items()} for item in typed_of]


def share(runs: Sequence[Run], jobs: str) -> list[Run]:
    """Those of part I of N, counted from 1: every N-th run. Raises UserError if `jobs` says no I/N."""
    part, _, parts = jobs.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--jobs takes I/N with I from 1 to N, such as 1/4, got {jobs!r}")
    return list(runs[int(part) - 1 :: int(parts)])
