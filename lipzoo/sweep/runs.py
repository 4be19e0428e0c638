"""The runs of a sweep: which recipes its settings make, each once, and which of them cannot be run."""

import dataclasses
import hashlib
import importlib
import json
import pkgutil
import shlex
from collections.abc import Iterable, Mapping, Sequence
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
    path = name if "." in name else f"recipes.{name}"
    try:
        module = importlib.import_module(path if all(map(str.isidentifier, path.split("."))) else "recipes.")
    except ModuleNotFoundError as error:
        raise UserError(
            f"there is no recipe {name!r}; choose from {', '.join(_names())}, or name a module with a RECIPE"
        ) from error
    variants = getattr(module, "VARIANTS", {})
    if variant is not None and variant not in variants:
        known = f"choose from {', '.join(variants)}" if variants else f"{name} has none"
        raise UserError(f"there is no --variant {variant!r}: {known}")
    chosen = variants[variant] if variant else getattr(module, "RECIPE", None)
    if not isinstance(chosen, Recipe):
        raise UserError(f"{name} has no RECIPE that can be swept")
    return Base(chosen, f"python -m {path}" + (f" --variant {variant}" if variant else ""))


def _names() -> list[str]:
    """The recipes that come with the library and can be swept."""
    found = (name for _, name, _ in pkgutil.iter_modules(importlib.import_module("recipes").__path__))
    return [name for name in found if hasattr(importlib.import_module(f"recipes.{name}"), "RECIPE")]


def runs_of(base: Base, settings: Iterable[Setting]) -> list[Run]:
    """The runs that settings make, in their order, each once, by what is trained: fields that do nothing beside the
    others are left out."""
    runs: dict[str, Run] = {}
    for setting in settings:
        run = _run(base, setting)
        runs.setdefault(run.key, run)
    return list(runs.values())


def _run(base: Base, setting: Setting) -> Run:
    recipe, effective = with_setting(base.recipe, setting), dict(setting)
    while nothing := [name for name in effective if idle(name, recipe)]:  # One that is left out may idle another.
        recipe = with_setting(recipe, {name: value_of(base.recipe, name) for name in nothing})
        effective = {name: value for name, value in effective.items() if name not in nothing}
    command = shlex.join([*base.command.split(), *flags_of(effective)])
    told = {name: effective.get(name) for name in setting}
    try:
        if refusal := field_refusal(recipe):
            raise UserError(refusal)
        ready = fitted(recipe)
    except UserError as error:
        return Run(key_of(recipe), told, recipe, command, str(error))
    return Run(key_of(ready), told, ready, command)


def key_of(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits that tell a recipe from all others."""
    return hashlib.sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def settings_of(value: object, recipe: Recipe) -> list[Setting]:
    """The settings that a JSON list of objects holds. Raises UserError if it is none."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise UserError('--config must hold a list of settings: [{"lr": 0.1, "seed": 0}, {"lr": 0.2}]')
    return [_setting(item, recipe) for item in value]


def _setting(item: Mapping[str, object], recipe: Recipe) -> Setting:
    found = {name.replace("-", "_"): typed(name, field_named(recipe, name), value) for name, value in item.items()}
    if len(found) < len(item):
        raise UserError(f"a setting of --config names a field twice: {', '.join(item)}")
    return found


def share(runs: Sequence[Run], jobs: str) -> list[Run]:
    """Those of part I of N, counted from 1: every N-th run. Raises UserError if `jobs` says no I/N."""
    part, _, parts = jobs.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--jobs takes I/N with I from 1 to N, such as 1/4, got {jobs!r}")
    return list(runs[int(part) - 1 :: int(parts)])
