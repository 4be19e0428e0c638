"""Whole runs: the files they leave, and that no way of ending one loses anything."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import lipzoo
from lipzoo.certify.certificate import Certificate
from lipzoo.cli import run as commands
from lipzoo.cli.run import train
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import make_mesh
from lipzoo.recipe.recipe import Recipe
from lipzoo.report.metrics import Reporter, read_metrics
from lipzoo.system.errors import Interrupted, UserError
from lipzoo.theory.weight import map_weights, weights
from lipzoo.train import evaluate, loop
from lipzoo.train import run as runs
from lipzoo.train.checkpoint import Checkpoints
from lipzoo.train.state import init_state
from tests.conftest import SMALL_RUN
from tests.recipe.test_recipe import make

FLAGS = ["--steps", "1800", "--save-interval", "300", "--width", "16", "--sigma-max", "2", "--ema", "0.99"]


def start(*arguments):
    """A run in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "recipes.digits_mlp", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def sha256(run):
    """Of the weights, and of their mean if it was kept."""
    paths = [path for path in (run / "certificate.json", run / "ema" / "certificate.json") if path.exists()]
    return [json.loads(path.read_text())["weights_sha256"] for path in paths]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The weights of a run that nothing disturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    status, _, err = finish(start(*FLAGS, "--run-dir", run))
    assert (status, err) == (0, "")
    return sha256(run)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


ENDINGS = [
    (signal.SIGKILL, "recipe.json", -9),
    (signal.SIGKILL, "checkpoints/300.orbax-checkpoint-tmp", -9),
    (signal.SIGTERM, "checkpoints/600", 143),
    (signal.SIGINT, "checkpoints/900", 130),
]
"""How one run is ended again and again, and what it has just written then."""


@pytest.mark.slow
def test_a_run_that_was_ended_again_and_again_ends_bit_for_bit_as_one_that_was_not(reference, tmp_path):
    run = tmp_path / "run"
    arguments = [*FLAGS, "--run-dir", run]
    for number, moment, status in ENDINGS:
        process = start(*arguments)
        wait_for((run / moment).exists, process)
        process.send_signal(number)
        got, out, err = finish(process)
        assert got == status, (moment, err)
        if number != signal.SIGKILL:
            assert f"go on with --resume {run}" in out.replace("\n", "")
        arguments = ["--resume", run]
    status, _, err = finish(start(*arguments))
    assert (status, err) == (0, "")
    assert sha256(run) == reference
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(20, 1801, 20))


def test_a_run_leaves_the_files_that_the_next_tool_reads(digits_run):
    assert (digits_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((digits_run / "recipe.json").read_text())["training"]["steps"] == 60
    records = read_metrics(digits_run / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == [10, 20, 30, 40, 50, 60]
    assert [r["step"] for r in records if "val_loss" in r] == [20, 40, 60]
    assert set(records[0]) == {"step", "loss", "accuracy", "lr", "images_per_second", "norms"}
    assert set(records[0]["norms"]) == {"layers.0", "layers.1", "head"}
    assert records[-1]["val_accuracy"] > 0.5
    assert sorted(int(p.name) for p in (digits_run / "checkpoints").iterdir()) == [40, 60]


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    """Labels are random: validation only gets worse."""
    recipe = make(**{**SMALL_RUN, "randomize_labels": 1.0, "lr": 1.0, "keep": 1, "seed": 3})
    assert train(recipe, tmp_path / "run", resume=False) == 0
    losses = {r["step"]: r["val_loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in r}
    kept = sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == sorted({min(losses, key=losses.__getitem__), 60})


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(run_copy, digits_run, capsys):
    shutil.rmtree(run_copy / "checkpoints" / "60" / "rest")
    assert train(make(**SMALL_RUN), run_copy, resume=True) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "the checkpoint of step 60 is damaged: its rest is missing" in out
    assert sha256(run_copy) == sha256(digits_run)


def test_no_readable_checkpoint_is_a_users_mistake(run_copy):
    for step in (40, 60):
        shutil.rmtree(run_copy / "checkpoints" / str(step) / "rest")
    with pytest.raises(UserError, match="can be used as it is"):
        train(make(**SMALL_RUN), run_copy, resume=True)


@pytest.mark.parametrize("mesh", ["8", "2x2"])
def test_a_checkpoint_restores_onto_another_number_of_devices(run_copy, digits_run, mesh):
    recipe = make(**{**SMALL_RUN, "mesh": mesh})
    shutil.rmtree(run_copy / "checkpoints" / "60")
    assert train(recipe, run_copy, resume=True) == 0
    for ours, theirs in zip(weights(lipzoo.load(run_copy).model), weights(lipzoo.load(digits_run).model), strict=True):
        np.testing.assert_allclose(ours.array, theirs.array, atol=1e-4)


def test_everything_of_the_state_is_restored(run_copy):
    recipe = make(**SMALL_RUN)
    state = init_state(recipe, make_mesh())
    data = load_digits().batches(batch_size=64, count=60, seed=0)
    checkpoints = Checkpoints(run_copy, 2)
    restored = checkpoints.restore(40, state, data)
    checkpoints.close()
    assert int(restored.step) == 40
    assert data.get_state()["next_index"] == 40
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert (before.dtype, before.shape, before.sharding) == (after.dtype, after.shape, after.sharding)
    momentum = jax.tree.leaves(restored.opt_state)
    assert all((np.abs(leaf) > 0).any() for leaf in momentum)


def test_a_loss_that_becomes_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    run = tmp_path / "run"
    options = {"optimizer": "adamw", "constraint": "none", "lr": 1e20, "schedule": "constant", "save_interval": 1}
    assert train(make(**{**SMALL_RUN, **options}), run, resume=False) == 1
    err = capsys.readouterr().err
    bad = int(re.search(r"became NaN or infinite at step (\d+) \(learning rate 1e\+20\)", err)[1])
    assert f"the last good checkpoint is step {bad - 1} in {run}" in err
    assert lipzoo.load(run).step == bad - 1
    assert Certificate.of(lipzoo.load(run).model)


def test_a_run_does_not_write_over_another(digits_run):
    with pytest.raises(UserError, match="already holds a run"):
        train(make(**SMALL_RUN), digits_run, resume=False)


def test_an_unwritable_directory_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*choose another --run-dir"):
        train(make(**SMALL_RUN), tmp_path / "file" / "run", resume=False)


def test_a_disk_that_is_full_ends_in_one_sentence_and_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    answers = iter([usage, usage._replace(free=1000)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(answers))
    with pytest.raises(UserError, match=r"the disk is full: a checkpoint needs .* go on with --resume"):
        train(make(**SMALL_RUN), tmp_path / "run", resume=False)
    assert lipzoo.load(tmp_path / "run").step == 20


def test_a_write_that_fails_half_way_ends_in_one_sentence(tmp_path):
    """A limit on the size of files, below the optimizer's: the storage layer's own errors."""
    limited = "trap '' XFSZ; ulimit -f 100; exec \"$@\""
    command = ["bash", "-c", limited, "-", sys.executable, "-m", "recipes.digits_mlp", "--steps", "4"]
    done = subprocess.run([*command, "--run-dir", str(tmp_path / "run")], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "error: could not write a checkpoint to" in done.stderr


def test_cifar10_runs_from_the_command_line(cifar_dir, tmp_path):
    command = [sys.executable, "-m", "recipes.cifar_mlp", "--steps", "60", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    validation = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert validation["val_accuracy"] > 0.3


class Terminating:
    """Sends SIGTERM to this process once: when `moment` is at its n-th time."""

    def __init__(self, moment, times):
        self.moment, self.left = moment, times

    def at(self, moment):
        if moment == self.moment:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def install(self, monkeypatch):
        step, evaluate, make_train_step = Reporter.step, loop.make_evaluate, loop.make_train_step

        def report(reporter, *arguments):
            self.at("step")
            step(reporter, *arguments)

        def make_evaluate(*arguments):
            real = evaluate(*arguments)

            def watched(model, watch, proved):
                def told(done, count):
                    assert count == 6
                    self.at("validation")
                    watch(done, count)

                return real(model, told, proved)

            return watched

        def make_step(*arguments):
            function = make_train_step(*arguments)
            signals = self

            class Slow:
                def lower(self, *values):
                    return self

                def compile(self):
                    before = signals.left
                    signals.at("compilation")
                    if before == 1 and signals.moment == "compilation":
                        time.sleep(1)
                    return function

            return Slow()

        monkeypatch.setattr(Reporter, "step", report)
        monkeypatch.setattr(loop, "make_evaluate", make_evaluate)
        monkeypatch.setattr(loop, "make_train_step", make_step)


MOMENTS = [("step", 40, 40), ("step", 60, 60), ("validation", 2, 20), ("validation", 14, 60), ("compilation", 2, 30)]


@pytest.mark.parametrize(("moment", "times", "saved"), MOMENTS, ids=str)
def test_sigterm_is_heard_everywhere_and_the_run_ends_with_the_same_weights(
    moment, times, saved, sealed_run, tmp_path, monkeypatch, capsys
):
    """Also at a step that seals: a seal that was left out would show, since the one of this test halves the head."""
    recipe, sha = sealed_run(tmp_path / "whole", monkeypatch)
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        Terminating(moment, times).install(patched)
        assert train(recipe, run, resume=False) == 143
    assert f"saved step {saved}; go on with --resume {run}\n" in capsys.readouterr().out
    assert max(int(path.name) for path in (run / "checkpoints").iterdir()) == saved
    assert train(recipe, run, resume=True) == 0
    assert sha256(run) == sha
    records = read_metrics(run / "metrics.jsonl")
    assert [r["step"] for r in records if "val_loss" in r] == [20, 40, 60]
    assert [r["step"] for r in records if "loss" in r] == [10, 20, 30, 40, 50, 60]


@pytest.fixture
def sealed_run(shared={}):  # noqa: B006
    """A function that trains under a seal that always shows, with a second compilation half way, and its sha256."""

    def run(folder, monkeypatch):
        def halve(model, watch):
            head = next(weight for weight in weights(model) if weight.name == "head")
            return map_weights(lambda w: w.with_array(w.array / 2) if w.name == head.name else w, model)

        monkeypatch.setattr(loop, "seal", halve)
        monkeypatch.setattr(evaluate, "EVALUATED_TOGETHER", {1: 64})
        monkeypatch.setattr(Recipe, "window_at", lambda self, step: 1 + (step > 30))
        recipe = make(**SMALL_RUN)
        if not shared:
            assert train(recipe, folder, resume=False) == 0
            shared["sha256"] = sha256(folder)
        return recipe, shared["sha256"]

    return run


def test_a_signal_before_the_first_step_and_after_the_last_says_what_is_saved(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    run, recipe = tmp_path / "run", make(**SMALL_RUN)
    moments = [
        (type(recipe.data), "load", "has written nothing"),
        (runs, "init_state", "no step was done; go on with --resume"),
        (commands, "certify", "complete and saved; python -m lipzoo.certify"),
    ]
    for owner, name, message in moments:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupt)
            with pytest.raises(Interrupted, match=message) as end:
                train(recipe, run, resume=run.exists())
        assert end.value.number == signal.SIGINT
    assert lipzoo.load(run).step == 60


def test_a_thread_that_is_not_the_main_one_can_train(tmp_path):
    status = []
    thread = threading.Thread(target=lambda: status.append(train(make(**SMALL_RUN), tmp_path / "run", resume=False)))
    thread.start()
    thread.join()
    assert status == [0]


def test_a_run_outlives_who_reads_what_it_says(tmp_path):
    run = tmp_path / "run"
    command = (
        f"'{sys.executable}' -m recipes.digits_mlp --width 16 --steps 20 --save-interval 10 --run-dir '{run}' | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUNBUFFERED": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "MLP\n", "")
    assert (run / "certificate.json").exists()
