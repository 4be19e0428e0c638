"""Sweeps from the command line: what they find is what runs alone find, kept run by run, whatever ends them."""

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lipzoo.cli.run import train
from lipzoo.data.digits import load_digits
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep import results as results_module
from lipzoo.sweep.__main__ import sweep
from lipzoo.sweep.launch import parsed
from lipzoo.sweep.outcome import outcome
from lipzoo.sweep.results import Results, read_rows, tables
from lipzoo.sweep.runs import Run
from lipzoo.sweep.schedule import Pending, Worker
from lipzoo.sweep.together import train_together
from lipzoo.sweep.width import measured_width
from lipzoo.sweep.worker import rows_of
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import weights
from tests.recipe.test_recipe import make

SMALL = "digits_mlp --width 8 --batch-size 64 --steps"


def called(line, out, *more):
    return sweep([*SMALL.split(), "20", *line.split(), "--out", str(out), *more])


def start(line, out, steps=20):
    words = [sys.executable, "-m", "lipzoo.sweep", *SMALL.split(), str(steps), *line.split(), "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of six runs, one of which cannot be run and one of which diverges."""
    out = tmp_path_factory.mktemp("sweep")
    config = out / "settings.json"
    settings = [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.2, "constraint": "none", "sigma-max": 5}]
    settings += [{"optimizer": "adamw", "constraint": "none", "lr": 1e20}]
    settings += [{"optimizer": "adamw", "momentum_warmup": 3}]
    config.write_text(json.dumps(settings))
    assert called(f"--config {config} --seed 3", out / "of") == 0
    return out


@pytest.fixture(scope="module")
def rows(finished):
    return read_rows(finished / "of")


def test_every_run_has_a_row_that_says_how_it_ended(rows):
    assert sorted(row["status"] for row in rows) == ["diverged", "done", "done", "done", "refused"]
    for row in rows:
        assert row["command"].startswith("python -m recipes.digits_mlp ")
        if row["status"] != "done":
            assert row["reason"]
        if row["status"] != "refused":
            assert Recipe.from_json(json.loads(row["settings"])).training.seed == 3


def test_a_row_tells_what_its_command_trains(rows, tmp_path):
    """By the command line of the recipe, whose loop and validation these are."""
    from lipzoo.cli.train import parse
    from recipes.digits_mlp import RECIPE

    for index, row in enumerate(row for row in rows if row["status"] == "done"):
        run = tmp_path / str(index)
        assert train(parse(RECIPE, row["command"].split()[3:]).recipe, run, resume=False) == 0
        told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = next(record for record in reversed(told) if "val_loss" in record)
        for name in ("val_loss", "val_accuracy", "val_certified_accuracy", "val_lipschitz"):
            assert row[name] == pytest.approx(last[name], rel=1e-4, abs=1e-6), name
        certificate = json.loads((run / "certificate.json").read_text())
        assert certificate["certified"]["lipschitz"] <= row["val_lipschitz"] * (1 + 1e-4)  # It is searched for longer.


def test_csv_and_parquet_hold_the_same(finished, rows):
    other = read_rows(finished / "of" / "results.csv")
    assert [row["key"] for row in other] == [row["key"] for row in rows]
    assert [row["val_loss"] for row in other] == [row["val_loss"] for row in rows]


def test_what_is_done_is_not_run_again(finished, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr("lipzoo.sweep.drive.train_all", never)
    assert called(f"--config {finished / 'settings.json'} --seed 3", finished / "of") == 0
    assert called(f"--config {finished / 'settings.json'} --seed 3", finished / "of", "--status") == 0
    assert capsys.readouterr().out.endswith("5 runs: 3 done, 1 diverged, 1 refused\n")


def test_a_job_that_has_nothing_to_do_or_cannot_be_run_ends_well(tmp_path, capsys):
    assert called("--lr 0.1 0.2", tmp_path, "--jobs", "3/3") == 0
    assert "nothing is to be done" in capsys.readouterr().out
    assert called("--lr 0.1 -1", tmp_path, "--job-idx", "1") == 0
    assert [row["status"] for row in read_rows(tmp_path)] == ["refused"]


def test_status_makes_no_folder(tmp_path):
    assert called("--lr 0.1", tmp_path / "typo", "--status") == 0
    assert not (tmp_path / "typo").exists()


def test_a_run_whose_test_loss_is_infinite_has_diverged(monkeypatch):
    recipe = make(width=8, steps=3)
    (trained,) = train_together([recipe], lambda recipe: load_digits())
    values = {"val_loss": math.inf, "val_accuracy": 0.1}
    monkeypatch.setattr("lipzoo.sweep.outcome.make_evaluate", lambda *_: lambda *_, **__: values)
    row = outcome(recipe, trained, load_digits())
    assert row["status"] == "diverged"
    assert "test" in row["reason"] or "validation" in row["reason"]


def test_one_job_of_many_runs_alone(finished, capsys):
    assert called(f"--config {finished / 'settings.json'} --seed 3", finished / "of", "--job-idx", "1", "--status") == 0
    assert capsys.readouterr().out == "1 runs: 1 done\n"


@pytest.mark.parametrize("times", [1, 3])
def test_many_runs_at_once_are_what_each_is_alone_on_as_many_devices_as_there_are(times):
    """Three runs of two seeds on three devices, and nine on eight: to 2e-4, since batched products are summed up in
    another order."""
    recipes = [make(width=8, steps=12, batch_size=32, lr=lr, seed=seed) for lr, seed in ((0.1, 0), (0.4, 1), (0.2, 1))]
    recipes *= times
    seen = []
    many = train_together(recipes, lambda recipe: load_digits(), seen.append)
    assert seen == list(range(1, 13))
    assert len(many) == 3 * times
    for recipe, one in [*zip(recipes, many, strict=True)][-3:]:
        (alone,) = train_together([recipe], lambda recipe: load_digits())
        np.testing.assert_allclose(one.curves["loss"], alone.curves["loss"], atol=2e-4)
        for a, b in zip(weights(one.model), weights(alone.model), strict=True):
            np.testing.assert_allclose(a.array, b.array, atol=2e-4)


def test_runs_that_have_all_diverged_end():
    recipe = make(width=8, steps=500, optimizer="adamw", constraint="none", lr=1e20)
    for count in (1, 2):
        for trained in train_together([recipe] * count, lambda recipe: load_digits()):
            assert len(trained.curves["loss"]) == 50


def test_how_many_at_once_is_a_multiple_of_the_devices_or_one():
    recipes = [make(width=8, steps=40, batch_size=32, seed=seed) for seed in range(9)]
    assert measured_width(recipes, lambda recipe: load_digits()) in (8, 16)


def test_what_goes_wrong_with_some_runs_is_told_in_their_rows(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such thing\nmore")

    monkeypatch.setattr("lipzoo.sweep.together.train_together", fail)
    (row,) = rows_of({"runs": [("k", make(width=8).to_json())], "together": 1})
    assert (row["key"], row["status"], row["reason"]) == ("k", "failed", "RuntimeError: no such thing")


# --- Files ----------------------------------------------------------------------------------------------------


def test_columns_of_mixed_rows():
    parquet, csv = tables(
        [{"key": "b", "status": "done", "x": 1, "y": (1, "a")}, {"key": "a", "status": "failed", "x": 0.5, "z": True}]
    )
    assert csv.decode().splitlines()[0].replace('"', "") == "key,status,x,z,y"
    assert b"0.5" in csv
    assert parquet[:4] == b"PAR1"


def test_a_full_disk_is_told_once_and_results_are_written_when_there_is_room(tmp_path, monkeypatch, capsys):
    results, full = Results(tmp_path), [True]
    real = results_module.write_text

    def write(path, text):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    monkeypatch.setattr(results_module, "write_text", write)
    for key in "ab":
        results.add({"key": key, "status": "done", "command": ""})
    assert capsys.readouterr().err.count("warning") == 1
    with pytest.raises(UserError, match="2 results could not be written"):
        results.close()
    full[0] = False
    results.add({"key": "c", "status": "done", "command": ""})
    results.close()
    assert [row["key"] for row in read_rows(tmp_path)] == ["a", "b", "c"]
    assert Results(tmp_path).done("b")


def test_a_damaged_row_is_told_and_run_again(tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "x.json").write_text('{"status"')
    assert not Results(tmp_path).done("x")
    assert "x.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1", b"key,status\n1,2\n"])
def test_no_table_of_a_sweep_is_refused(tmp_path, content):
    path = tmp_path / ("t.csv" if b"," in content else "t.parquet")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"no (results.parquet|table) of a sweep"):
        read_rows(path)
    with pytest.raises(UserError, match=r"no results.parquet"):
        read_rows(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        called("--lr 0.1", tmp_path / "file")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lrr 0.1", "do you mean --lr"),
        ("--momentum-warmup 3 --optimizer adamw", "none of 1 runs can be run"),
        ("--config SETTINGS --lr 0.5", "leave one out"),
        ("--samples 3 --seed lin:0:3", "single values"),
        ("--config nowhere.json", "cannot be read"),
        ("--lr 0.1 --job-idx 1", "below the number of runs"),
        ("--lr 0.1 --job-idx 0 --jobs 1/2", "leave one out"),
        ("--lr log:0.1:1", "COUNT"),
        ("--lr 0.1 --parts 2", "without --launch"),
        ("--lr 0.1 --launch local --jobs 1/2", "makes the --jobs itself"),
        ("--variant x", "has none"),
    ],
)
def test_a_line_that_makes_no_sweep_is_refused(line, says, tmp_path):
    (tmp_path / "s.json").write_text('[{"lr": 0.1}]')
    with pytest.raises(UserError, match=says):
        called(line.replace("SETTINGS", str(tmp_path / "s.json")), tmp_path / "out")


# --- Processes ------------------------------------------------------------------------------------------------


def test_runs_of_one_structure_stay_with_one_worker():
    runs = [(plan, Run(f"{plan}{index}", {}, make(), "")) for plan in "ab" for index in range(3)]
    pending, got = Pending(runs, 1), {0: [], 1: []}
    for worker in (0, 1, 0, 1, 0, 1):
        got[worker] += [run.key for run in pending.next_for(worker)]
    assert got == {0: ["a0", "a1", "a2"], 1: ["b0", "b1", "b2"]}
    assert pending.next_for(0) == []


def test_a_process_that_ends_is_started_again_and_what_it_cannot_do_is_told(tmp_path, monkeypatch):
    """One that is killed at once, each time."""
    real, count = subprocess.Popen, []

    def dies(*args, **options):
        process = real(*args, **options)
        process.kill()
        count.append(1)
        return process

    monkeypatch.setattr(subprocess, "Popen", dies)
    recipe, told = make(width=8), []
    worker = Worker(0, None, tmp_path, 1)
    worker.work(Pending([("p", Run("k", {}, recipe, ""))], 1), told.append)
    assert len(count) == 2
    assert told[0]["status"] == "failed"
    assert "signal 9" in told[0]["reason"]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(tmp_path):
    """Rows that were there are not written again, and in the end there is one for each run."""
    line, out = "--lr log:0.05:0.5:3 --seed 0 1", tmp_path / "out"
    written, rng = {}, random.Random(0)
    for rows in (1, 3):
        process = start(line, out)
        while len(list((out / "rows").glob("*.json")) if out.exists() else []) < rows:
            time.sleep(rng.uniform(0.1, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for path in (out / "rows").glob("*.json") if out.exists() else ():
            content = path.read_text()
            assert written.setdefault(path.name, (content, path.stat().st_mtime_ns))[1] == path.stat().st_mtime_ns
    process = start(line, out)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert len(read_rows(out)) == 6
    for name, (content, _) in written.items():
        assert (out / "rows" / name).read_text() == content


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_with_a_word_on_what_is_kept(tmp_path, number):
    process = start("--lr log:0.05:0.5:3 --seed 0 1", tmp_path / "out", steps=100_000)
    assert process.stdout is not None
    assert process.stdout.readline() == f"6 runs: 6 to do; results: {tmp_path / 'out'}\n"
    time.sleep(2)
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert "the same command goes on" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_parts_are_handed_to_a_scheduler(tmp_path):
    """By submitit's own executor for this machine."""
    pytest.importorskip("submitit")
    assert called("--lr 0.1 0.2 0.3", tmp_path, "--launch", "local", "--parts", "2") == 0
    assert [row["status"] for row in read_rows(tmp_path)] == ["done"] * 3


def test_options_of_a_scheduler_are_pairs():
    assert parsed(["timeout_min=60", "slurm_partition=gpu"]) == {"timeout_min": 60, "slurm_partition": "gpu"}
    for wrong in ("x", "=1", "a="):
        with pytest.raises(UserError, match="KEY=VALUE"):
            parsed([wrong])


def test_two_sweeps_in_one_folder_wait_for_each_other(tmp_path):
    from lipzoo.system.lock import held

    (tmp_path / "out").mkdir()
    with held(tmp_path / "out", ".lock-1-of-1"), pytest.raises(UserError, match="another process is working in"):
        called("--lr 0.1", tmp_path / "out")
    assert jax.process_count() == 1
