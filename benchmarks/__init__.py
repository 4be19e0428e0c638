"""Where the figures of the README come from: `python -m benchmarks.NAME`."""

import sys
from collections.abc import Callable
from pathlib import Path

from lipzoo.cli.train import guarded

FOLDER = Path(__file__).parent
"""Where tables and pictures are written unless told otherwise."""


def benchmark(main: Callable[[], None]) -> None:
    """Runs a benchmark and exits; a user's mistake ends in one sentence."""
    sys.exit(guarded(lambda: main() or 0))
