"""`python -m lipzoo.import_npz file.npz run_dir`: imports a published checkpoint of a transformer."""

import dataclasses
import sys
from typing import Annotated

import tyro

from lipzoo.import_npz.published import import_npz
from lipzoo.system.paths import UserPath
from lipzoo.system.terminal import guarded, program


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What can be said on the command line."""

    file: Annotated[UserPath, tyro.conf.Positional]
    """The published npz file."""
    run_dir: Annotated[UserPath, tyro.conf.Positional]
    """Where to write the run; its checkpoints are numbered as in the file."""
    alphabet: str = ""
    """Characters of the tokens 0, 1, …, which the file does not tell; by default Shakespeare's if there are 65."""


def _main() -> int:
    line = tyro.cli(CommandLine, prog=program(), description="Imports a published checkpoint of a transformer.")
    paths = import_npz(line.file, line.run_dir, line.alphabet)
    print(f"wrote {len(paths)} checkpoint(s) to {line.run_dir}; next: python -m lipzoo.certify {line.run_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(_main))
