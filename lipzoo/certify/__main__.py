"""`python -m lipzoo.certify checkpoint_dir`: certifies the stored weights of any checkpoint."""

import dataclasses
import math
import sys
from typing import Annotated

import tyro

from lipzoo.certify.run import certify
from lipzoo.certify.tighten import STEPS
from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Whole
from lipzoo.system.errors import UserError
from lipzoo.system.paths import UserPath
from lipzoo.system.streams import make_console
from lipzoo.system.terminal import guarded, program
from lipzoo.theory.functions import Format
from lipzoo.theory.numbers import format_power


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    checkpoint_dir: Annotated[UserPath, tyro.conf.Positional]
    """A run, its checkpoints folder, or one step in it; the newest step is taken. Or an exported file, or zoo:NAME."""
    json: bool = False
    """Print the certificate as JSON."""
    max_lipschitz: float | None = None
    """Exit with status 1 if the certified bound is above this."""
    arithmetic: Format | None = None
    """Format in which the network runs, whose rounding is covered (default: that in which it was trained). tf32 is
    float32 with factors of matrix products rounded as tensor cores do."""
    tighten: Whole = STEPS
    """Steps of a search for a smaller bound of a network of vectors, at most."""


def _main() -> int:
    line = tyro.cli(CommandLine, prog=program(), description="Certifies the stored weights of a checkpoint.")
    if line.max_lipschitz is not None and math.isnan(line.max_lipschitz):
        raise UserError("--max-lipschitz must be a number")
    if refusal := field_refusal(line):
        raise UserError(refusal)
    certificate, text, _ = certify(line.checkpoint_dir, tighten=line.tighten, dtype=line.arithmetic)
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
