"""`python -m lipzoo.certify checkpoint_dir`: certifies the stored weights of any checkpoint."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

import lipzoo
from lipzoo.theory.bound import format_power
from lipzoo.certify.certificate import Certificate
from lipzoo.train.checkpoint import Loaded, load
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.progress import waiting
from lipzoo.system.terminal import UserPath, guarded, make_console


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    checkpoint_dir: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it. The newest step is taken."""
    json: bool = False
    """Print the certificate as JSON."""
    max_lipschitz: float | None = None
    """Exit with status 1 if the certified bound is above this."""


def certify(directory: Path, console: Console | None = None) -> tuple[Certificate, str, Path | None]:
    """Certifies the newest checkpoint under `directory` and writes `certificate.json` into its run.

    Shows on the console, by default on stderr, how far it is.

    **Returns:** the certificate, its JSON, and where that was written (None where the run cannot be written to).
    """
    loaded = load(directory)
    certificate = _certificate(loaded, console)
    text = json.dumps(to_json(certificate, loaded), indent=2, allow_nan=False) + "\n"
    folder = loaded.path.parent
    run = folder.parent if folder.name == "checkpoints" else folder
    path = run / "certificate.json"
    try:
        write_text(path, text)
    except OSError as error:
        print(f"warning: cannot write {path} ({error.strerror})", file=sys.stderr)
        return certificate, text, None
    return certificate, text, path


def _certificate(loaded: Loaded, console: Console | None) -> Certificate:
    _, window = loaded.recipe.data.unit
    try:
        with waiting("certifying", None, console) as wait:
            return Certificate.of(loaded.model, window=window, watch=wait.show)
    except ValueError as error:
        raise UserError(f"the checkpoint {loaded.path} cannot be certified: {error}") from error


def to_json(certificate: Certificate, loaded: Loaded) -> dict[str, object]:
    """The certificate with what it is about: checkpoint, sha256 of the weights, recipe, version."""
    about = {
        "lipzoo": lipzoo.__version__,
        "checkpoint": str(loaded.path.absolute()),
        "step": loaded.step,
        "weights_sha256": loaded.sha256,
        "recipe": loaded.recipe.to_json(),
    }
    return about | certificate.to_json()


def _main() -> int:
    line = tyro.cli(CommandLine, description="Certifies the stored weights of a checkpoint.")
    if line.max_lipschitz is not None and math.isnan(line.max_lipschitz):
        raise UserError("--max-lipschitz must be a number")
    certificate, text, _ = certify(line.checkpoint_dir)
    if line.json:
        print(text, end="")
    else:
        make_console().print(certificate)
    if line.max_lipschitz is not None and not certificate.lipschitz <= line.max_lipschitz:
        bound = format_power(certificate.certified.log10_lipschitz)
        print(f"the certified bound {bound} is above --max-lipschitz {line.max_lipschitz:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
