"""What can be said on the command line of a recipe."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from lipzoo.config.fields import options
from lipzoo.devices.processes import ProcessConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.paths import UserPath


@options
@dataclasses.dataclass(frozen=True)
class Resume:
    """Whether to go on with a run."""

    resume: UserPath | None = None
    """Run to go on with from its newest checkpoint, with the settings stored there unless given anew."""


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line of a recipe."""

    recipe: Annotated[Recipe, arg(name="")]
    resume: Annotated[Resume, arg(name="")] = Resume()
    processes: ProcessConfig = ProcessConfig()
    run_dir: UserPath | None = None
    """Where to write the run; by default runs/NAME/TIMESTAMP."""
    compilation_cache: bool = True
    """Keep what is compiled in $LIPZOO_DATA_DIR/compiled, for the next time."""
