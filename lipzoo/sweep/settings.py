"""Settings: values for fields of a recipe, named as flags are, and of the field's own type."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from lipzoo.config.fields import PREFIXED, flag
from lipzoo.recipe.changes import OF_DIRECTORIES
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError

Setting = Mapping[str, Any]
"""Values by the names of fields: `lr`, `ebc.target_kl`."""
NOT_SWEPT = ("name", "ema", "measure_steps", *OF_DIRECTORIES)
"""Fields that say nothing to a sweep: it validates at the end, saves no checkpoints, and deals runs out itself."""


class Field(NamedTuple):
    """Where a field lies in a recipe, and what it holds."""

    path: tuple[str, ...]
    kind: Any

    @property
    def plain(self) -> Any:
        """The type without its annotations."""
        return typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is Annotated else self.kind


def fields_of(config: Any, path: tuple[str, ...] = ()) -> dict[str, Field]:
    """The fields of a recipe and of its parts, by name."""
    kinds, found = typing.get_type_hints(type(config), include_extras=True), {}
    for name in (field.name for field in dataclasses.fields(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            found |= fields_of(value, (*path, name))
        else:
            found[".".join([*(part for part in path if part in PREFIXED), name])] = Field((*path, name), kinds[name])
    return found


def field_named(recipe: Recipe, name: str) -> Field:
    """The field that a flag or a key names. Raises UserError, with names that are near, if there is none."""
    found = {key: field for key, field in fields_of(recipe).items() if key not in NOT_SWEPT}
    key = name.replace("-", "_")
    if key in found:
        return found[key]
    if key in NOT_SWEPT:
        raise UserError(f"{flag(name)} says nothing to a sweep, which validates at the end and saves no runs")
    near = difflib.get_close_matches(key, found, 2, 0.6)
    hint = f"do you mean {' or '.join(flag(key) for key in near)}?" if near else f"it has {', '.join(sorted(found))}"
    raise UserError(f"{recipe.name} has no field {name!r}: {hint}")


def typed(name: str, field: Field, value: Any) -> Any:
    """A value of a field's type, from text or JSON. Raises UserError if it is none."""
    from pydantic import TypeAdapter, ValidationError  # Slow to import.

    if isinstance(value, bool) and field.plain is not bool:
        raise UserError(f"{flag(name)}: {value!r} is no value for it")
    adapter = TypeAdapter(field.plain)
    if typing.get_origin(field.plain) is tuple and isinstance(value, str):
        value = tuple(part for part in value.split(",") if part)
    try:
        return adapter.validate_strings(value) if isinstance(value, str) else adapter.validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(f"{flag(name)}: {value!r} is no value for it: {message[0].lower()}{message[1:]}") from error


def with_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe with these values."""
    for name, value in setting.items():
        recipe = _replaced(recipe, field_named(recipe, name).path, value)
    return recipe


def value_of(recipe: Recipe, name: str) -> Any:
    """The value of a field."""
    value: Any = recipe
    for part in fields_of(recipe)[name].path:
        value = getattr(value, part)
    return value


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    return dataclasses.replace(config, **{first: _replaced(getattr(config, first), rest, value) if rest else value})


def flags_of(setting: Setting) -> list[str]:
    """A setting as words on a recipe's command line."""
    words: list[str] = []
    for name, value in setting.items():
        if isinstance(value, bool):
            prefix, _, last = flag(name).removeprefix("--").rpartition(".")
            words.append(f"--{prefix}{'.' * bool(prefix)}{'' if value else 'no-'}{last}")
        elif isinstance(value, tuple):
            words += [flag(name), *map(str, value)]
        else:
            words += [flag(name), str(value)]
    return words


def told(setting: Setting) -> str:
    """A setting as in a sentence."""
    return ", ".join(f"{name} {_text(value)}" for name, value in setting.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
