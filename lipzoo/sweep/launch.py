"""Parts of a sweep handed to a scheduler, by submitit: each is the same command with --jobs I/N."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipzoo.system.errors import UserError


def launch(words: Sequence[str], folder: Path, cluster: str, parts: int, options: Sequence[str]) -> None:
    """Submits so many parts, and says under which numbers they run. On this machine (`local`) it waits for them.

    **Raises:** UserError if submitit is not installed, or its scheduler not here, or a part fails.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--launch needs submitit: pip install 'lipzoo[slurm]'") from error
    logs = folder / "jobs"
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**parsed(options))
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise UserError(f"--launch {cluster} cannot be: {str(error).splitlines()[0]}") from error
    commands = [
        [sys.executable, "-m", "lipzoo.sweep", *words, "--jobs", f"{part + 1}/{parts}"] for part in range(parts)
    ]
    with executor.batch():
        jobs = [executor.submit(submitit.helpers.CommandFunction(command, verbose=False)) for command in commands]
    print(f"{parts} jobs: {', '.join(job.job_id for job in jobs)}; what they print goes to {logs}")
    if cluster == "local":
        _await(jobs, logs)


def _await(jobs: Sequence[Any], logs: Path) -> None:
    for job in jobs:
        if (error := job.exception()) is not None:
            raise UserError(f"job {job.job_id} has failed ({str(error).splitlines()[0]}): see {logs}")


def parsed(options: Sequence[str]) -> Mapping[str, Any]:
    """KEY=VALUE pairs, numbers as such. Raises UserError for anything else."""
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals and value):
            raise UserError(f"--launch-options takes KEY=VALUE, such as slurm_partition=gpu, got {option!r}")
        found[key] = int(value) if value.isdecimal() else value
    return found
