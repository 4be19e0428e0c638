"""Values of stored recipes, checked."""

from typing import Any


def validated(kind: type, value: Any, part: str = "") -> Any:
    """A value of this type. Raises ValueError, naming the field, if a value is of another type."""
    from pydantic import TypeAdapter, ValidationError  # Slow to import; a command line needs it for --resume alone.

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = [part] * bool(part) + [str(name) for name in first["loc"]]
        raise ValueError(f"{'.'.join(where)}: {first['msg']}") from error
