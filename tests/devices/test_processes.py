"""Several processes: they train as one, end together, resume, and say in one sentence why they cannot start."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from lipzoo.cli.run import train
from lipzoo.cli.train import parse
from lipzoo.config.fields import field_refusal
from lipzoo.devices.processes import SLURM_TASKS, ProcessConfig
from lipzoo.report.metrics import read_metrics
from recipes import digits_mlp
from tests.conftest import FLAGS
from tests.train.test_loop import sha256

SMALL = ["--width", 8, "--no-seal", "--batch-size", 8, "--log-interval", 1, "--val-interval", 100]


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(devices, *arguments, environment=None):
    """A process with so many fake devices."""
    flags = {"XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "recipes.digits_mlp", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **flags, **(environment or {})}, **pipes)


def start_two(*arguments):
    """Two processes of two devices each."""
    port = free_port()
    flags = ["--mesh", "2x2", "--coordinator", f"localhost:{port}", "--processes", 2]
    return [start(2, *arguments, *flags, "--process-id", index) for index in range(2)]


def finish(processes):
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def losses(run):
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]


def test_two_processes_end_together_and_resume_bit_for_bit_and_on_fewer_devices(tmp_path):
    whole, parts, alone = tmp_path / "whole", tmp_path / "parts", tmp_path / "alone"
    steps = ["--steps", 16, "--save-interval", 8]
    codes, outputs = finish(start_two(*SMALL, *steps, "--run-dir", whole))
    assert codes == [0, 0], outputs
    words = ("run:", "validation", "Bounds")  # Gloo, the library of the collectives, prints from every process.
    assert all(word in outputs[0][0] for word in words)
    assert not any(word in outputs[1][0] for word in words)

    processes = start_two(*SMALL, *steps, "--run-dir", parts)
    while len(losses(parts)) < 3:
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [143, 0] or codes == [143, 143], outputs
    assert "go on with --resume" in outputs[0][0]
    codes, outputs = finish(start_two("--resume", parts))
    assert codes == [0, 0], outputs
    assert sha256(parts) == sha256(whole)

    line = parse(digits_mlp.RECIPE, [str(word) for word in (*SMALL, *steps)])
    assert train(line.recipe, alone, resume=False) == 0
    np.testing.assert_allclose(losses(alone), losses(whole), rtol=1e-4)


def test_a_coordinator_that_cannot_be_reached_is_named():
    flags = ("--processes", 2, "--process-id", 1, "--coordinator-timeout", 2)
    codes, outputs = finish([start(1, "--coordinator", f"localhost:{free_port()}", *flags)])
    assert codes == [2]
    assert "error: the processes did not all reach localhost:" in outputs[0][1]
    assert "Traceback" not in outputs[0][1]


def test_slurm_names_a_coordinator_too():
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2", SLURM_TASKS: "2"}
    codes, outputs = finish([start(1, "--coordinator-timeout", 2, environment=slurm)])
    assert codes == [2]
    assert "did not all reach the coordinator that SLURM names within 2 seconds" in outputs[0][1]


REFUSED = [
    (ProcessConfig("host:1", 2, 2), "--process-id must lie between 0"),
    (ProcessConfig("host", 2, 0), "needs a --coordinator HOST:PORT"),
    (ProcessConfig("host:1", 1, 0), "--coordinator needs --processes"),
    (ProcessConfig(coordinator_timeout=0), "--coordinator-timeout must lie between 1"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_impossible_processes_are_refused(config, message):
    assert message in (field_refusal(config) or config.conflict())
