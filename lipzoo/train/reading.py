"""Reading checkpoints: which there are, whether one is whole, and what of it is no array.

Nothing of a step is used before all of it was looked at. What fails its checksums or cannot be read as what it should
be is `Damaged`; what is whole but cannot be used here (no permission, no memory, another version of lipzoo) is a
UserError that says so.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.files import LARGEST_JSON, check_regular, expanded, read_json
from lipzoo.system.quiet import hush
from lipzoo.train.digests import json_digest

hush()
STEP = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
MOST_FILES = 200_000
"""Files of a step beyond which it is no checkpoint but a circle of links."""
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors which mean that a file is not there, or is something else."""
NOT_DAMAGE = re.compile(
    "PERMISSION_DENIED|RESOURCE_EXHAUSTED|Out of memory|Cannot allocate memory|Too many open files|Input/output error"
)
"""What readers say of a machine that cannot read a file now, whatever is in it."""


class Damaged(Exception):
    """A checkpoint that cannot be restored; the message says why."""

    says = "is damaged"


class Misplaced(Damaged):
    """A checkpoint under the number of another step."""

    says = "is not what its name says"


@contextlib.contextmanager
def reading(step: Path, item: str = "") -> Iterator[None]:
    """Whatever a broken file makes readers raise is damage, unless it is the machine's fault."""
    try:
        yield
    except (Damaged, UserError):
        raise
    except Exception as error:
        line = _said(error)
        denied = isinstance(error, OSError) and error.errno not in (None, *GONE)
        if denied or isinstance(error, MemoryError) or NOT_DAMAGE.search(str(error)):
            raise UserError(f"cannot read {step / item} ({line}): see to that and try again") from error
        raise Damaged(f"{f'its {item}' if item else 'it'} cannot be read ({line})") from error


def _said(error: Exception) -> str:
    """What a reader says of a file; Python's own words for what is of another type say nothing to a user."""
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        return "it is not laid out as it was written"
    return first_line(error)


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(" See full TensorStore")[0][:120]


def step_number(path: Path) -> int | None:
    """The number of a step by its folder's name, or None if that is no step's."""
    return int(path.name) if STEP.fullmatch(path.name) else None


def find_steps(directory: Path) -> list[Path]:
    """The checkpoints that a run, its `checkpoints` folder, or a single step holds, newest first."""
    directory = Path(os.path.abspath(expanded(directory)))  # So that `.` has a name.
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory: give a run, its checkpoints folder, one step in it, or an exported file"
        )
    if (directory / "recipe").is_dir():
        return [directory]
    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    numbered = [(number, path) for path in folder.iterdir() if (number := step_number(path)) is not None]
    return [path for _, path in sorted(numbered, reverse=True)]


def check_files(step: Path) -> None:
    """Raises Damaged if a step holds what a reader could wait at for ever, or read for ever."""
    count = 0
    with reading(step):
        if not step.is_dir():
            raise Damaged("it is no folder")
        for folder, _, names in os.walk(step, followlinks=True, onerror=_raise):
            count += len(names) + 1
            if count > MOST_FILES:
                raise Damaged(f"it holds more than {MOST_FILES:,} files")
            for name in names:
                size = check_regular(Path(folder, name))
                if Path(folder).name != "d" and size > LARGEST_JSON:  # Arrays lie in folders called d.
                    raise Damaged(f"its {name} has {size:,} bytes")


def _raise(error: OSError) -> None:
    raise error


def item_json(step: Path, item: str) -> Any:
    """A JSON item of a checkpoint. Read as a file, since Orbax's reader waits for other processes. Raises Damaged."""
    with reading(step, item):
        return read_json(step / item / "metadata")


def read_about(step: Path) -> dict[str, Any]:
    """What is noted of a checkpoint: version, recipe and, since format 2, step and metrics. Raises Damaged."""
    about, digests = item_json(step, "recipe"), item_json(step, "digests")
    with reading(step, "recipe"):
        expected, found = digests["recipe"], about if "step" in about else about["recipe"]
        if not isinstance(about["lipzoo"], str) or not isinstance(about.get("step", 0), int):
            raise ValueError("it is another kind of file")
    if json_digest(found) != expected:
        raise Damaged("its recipe does not have the sha256 that was noted when it was saved")
    return about


def run_of(step: Path) -> Path:
    """The run that a checkpoint lies in; of an exported file, runs/NAME, where what tools find out about it goes."""
    if step.is_file():
        return Path("runs") / step.stem
    return step.parent.parent if step.parent.name == "checkpoints" else step.parent


def read_recipe(step: Path) -> Recipe:
    """The recipe that a checkpoint was trained by. Raises Damaged, or UserError if its version is another."""
    about = read_about(step)
    return usable_recipe(about["recipe"], about["lipzoo"], step)


def usable_recipe(value: object, version: str, path: Path) -> Recipe:
    """A stored recipe that there is a model of. Raises UserError, which names where it was stored."""
    try:
        recipe = Recipe.from_json(value, version)
    except UserError as error:
        raise UserError(f"cannot use the checkpoint {path}: {error}") from error
    if refusal := recipe.model.conflict():
        raise UserError(f"cannot use the checkpoint {path}: there is no model of its recipe: {refusal}")
    return recipe


def check_whole(step: Path) -> None:
    """Looks at all of a step but its arrays, to go on from it. Raises Damaged."""
    check_files(step)
    about, digests = read_about(step), item_json(step, "digests")
    if not isinstance(digests, dict):
        raise Damaged("its digests are not laid out as they were written")
    if about.get("step", step_number(step)) != step_number(step):
        raise Misplaced(f"it holds step {about['step']}")
    if "rest" not in digests and not (step / "rest").exists():
        raise UserError(f"the checkpoint {step} holds weights alone: no run can go on from it; start a new one")
    first_format = "step" not in about  # Which noted no digest of the data iterator.
    if missing := {"model", "rest", "recipe", *([] if first_format else ["data"])} - set(digests):
        raise Damaged(f"its digests lack {', '.join(sorted(missing))}")
    data = item_json(step, "data")
    if not isinstance(data, dict) or json_digest(data) != digests.get("data", json_digest(data)):
        raise Damaged("its data iterator is not what was saved")
