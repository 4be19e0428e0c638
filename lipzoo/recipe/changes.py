"""What of a recipe a run that goes on may be given anew."""

from lipzoo.config.fields import flag
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.unused import named_fields
from lipzoo.system.errors import UserError

OF_DIRECTORIES = (
    *("mesh", "log_interval", "val_interval", "save_interval", "keep"),
    *("loggers", "tensorboard", "wandb"),
)
"""Settings that say where a run goes on, and what its directory holds, but not what is trained."""
CHANGEABLE = ("steps", "accum_steps", "remat", *OF_DIRECTORIES)
"""Settings that a resumed run may be given anew."""


def check_unchanged(stored: Recipe, given: Recipe) -> None:
    """Raises UserError if a recipe has other settings than the run that it is to go on with, but for `CHANGEABLE`."""
    before, after = named_fields(stored.to_json()), named_fields(given.to_json())
    for name, value in after.items():
        if before.get(name) != value and name not in CHANGEABLE:
            raise UserError(
                f"{flag(name)} {value} differs from the {before.get(name)} that the run was started with: "
                f"leave {flag(name)} out to resume it, or start a new run without --resume"
            )
