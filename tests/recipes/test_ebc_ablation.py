"""The ablation: what it prints and writes, that it goes on where it stopped, and that equal shapes compile once."""

import csv
import json
import math
import subprocess
import sys

import pytest

from lipzoo.data.synthetic import LETTERS
from lipzoo.experiments import ebc_ablation
from lipzoo.models import GPTConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep import ablation, together
from lipzoo.system.errors import UserError
from recipes.ebc_ablation import DEFAULTS

TINY = {"steps": 6, "batch-size": 2, "seq-len": 8, "num-blocks": 1, "d-embed": 8, "num-heads": 2}


def ablate(argv):
    return ebc_ablation.ablate(argv, DEFAULTS, "")


def arguments(tmp_path, *more):
    sizes = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    return [
        *["--data", "synthetic", "--optimizers", "adam", "--constraints", "none"],
        *sizes,
        "--out",
        str(tmp_path),
        *more,
    ]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """The synthetic ablation from the command line, short, and its folder."""
    out = tmp_path_factory.mktemp("synthetic")
    command = [sys.executable, "-m", "recipes.ebc_ablation", "--data", "synthetic", "--steps", "30", "--out", str(out)]
    command += ["--optimizers", "muon"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300), out


def test_synthetic_prints_one_line_a_run_as_published_and_nothing_else(synthetic):
    done, out = synthetic
    assert (done.returncode, done.stderr) == (0, f"wrote summary.csv, results.json and pictures to {out}\n")
    header, *lines = [line.split(",") for line in done.stdout.splitlines()]
    assert header == ["optimizer", "ebc", "spectral", "final_loss", "final_acc", "ebc_c"]
    assert [",".join(line[:3]) for line in lines] == [
        *("muon,0,0", "muon,0,1", "muon,1,0", "muon,1,1"),
    ]
    assert all(math.isfinite(float(value)) for line in lines for value in line[3:])
    assert all(float(line[5]) == 1 for line in lines if line[1] == "0")


def test_synthetic_trains_a_gpt_that_learns_and_writes_its_tables(synthetic):
    _, out = synthetic
    results = json.loads((out / "results.json").read_text())
    assert len(rows(out / "summary.csv")) == len(results) == 4
    assert all(row["final_loss"] < math.log(len(LETTERS)) and not row["diverged"] for row in results)
    recipe = Recipe.from_json(json.loads(next(out.glob("*/result.json")).read_text())["recipe"])
    assert isinstance(recipe.model, GPTConfig)
    assert recipe.data.alphabet == LETTERS
    for name in ("pareto_ppl_vs_avgc.png", "lr_headroom.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_grid_shares_compilations_writes_its_tables_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    grid = ["--aggregates", "l1", "exact", "--deltas", "1e-8", "0.01", "--lr-scales", "1", "2", "--seeds", "0"]
    grid += ["--update-every", "2"]
    assert ablate(arguments(tmp_path, *grid, "--status")) == 0
    assert capsys.readouterr().out.startswith("grid: 0 of 10 runs done")
    steps = set()
    make = together.make_train_step
    monkeypatch.setattr(together, "make_train_step", lambda *a: (steps.add(s := make(*a)), s)[1])
    assert ablate(arguments(tmp_path, *grid)) == 0
    assert [step._cache_size() for step in steps] == [1] * 3, "off, l1, exact: learning rates, δ and seeds share one"
    summary = rows(tmp_path / "summary.csv")
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(summary) == len(results) == 10
    names = {
        "seconds",
        "final_loss",
        "final_acc",
        "perplexity",
        "clip_rate",
        "ebc_c",
        "per_second",
        "overhead",
        "delta",
    }
    assert names <= set(results[0])
    tight = [row for row in results if row["ebc"] == "exact" and row["delta"] == 1e-8]
    assert all(row["ebc_c"] < 1 for row in tight)
    assert len({(row["final_loss"]) for row in results if row["ebc"] == "off"}) == 2, "learning rates differ"
    for name in ("pareto_ppl_vs_avgc.png", "lr_headroom.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    folders = [path.parent for path in tmp_path.glob("*/result.json")]
    assert all((folder / "curves.png").exists() and len(rows(folder / "curves.csv")) == 6 for folder in folders)

    (folders[0] / "result.json").unlink()
    capsys.readouterr()
    assert ablate(arguments(tmp_path, *grid, "--status")) == 0
    assert f"9 of 10 runs done\n  missing: {folders[0].name}" in capsys.readouterr().out
    trained = []
    train = ablation.Runner._train
    noted = lambda self, recipe: (trained.append(recipe), train(self, recipe))[1]  # noqa: E731
    monkeypatch.setattr(ablation.Runner, "_train", noted)
    assert ablate(arguments(tmp_path, *grid)) == 0
    assert [ablation.run_name(recipe) for recipe in trained] == [folders[0].name]


def test_the_protocol_finds_a_learning_rate_and_a_delta(tmp_path, capsys):
    auto = ["--auto", "--aggregates", "exact", "--lr-scales", "1", "2", "--seeds", "0", "--steps", "20"]
    assert ablate([*arguments(tmp_path), *auto]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    sweep = {row["lr"]: row["final_loss"] for row in results if row["stage"] == "lr"}
    finals = [row for row in results if row["stage"] == "finals"]
    best = min(sweep, key=sweep.__getitem__)
    assert {row["lr"] for row in finals} == {best, 2 * best}
    assert {row["lr_scale"] for row in finals} == {1.0, 2.0}
    last = [row for row in results if row["stage"] == "delta"][-1]
    assert 0.1 <= last["clip_rate"] <= 0.3
    assert {row["delta"] for row in finals if row["ebc"] == "exact"} == {last["delta"]}
    capsys.readouterr()
    assert ablate([*arguments(tmp_path), *auto, "--status"]) == 0
    assert "finals: 4 of 4 runs done" in capsys.readouterr().out


def test_a_folder_of_other_settings_is_refused(tmp_path):
    grid = ["--ebc", "off", "--lr-scales", "1", "--seeds", "0"]
    assert ablate(arguments(tmp_path, *grid)) == 0
    with pytest.raises(UserError, match="other settings: choose another --out"):
        ablate([*arguments(tmp_path, *grid), "--seq-len", "4"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds"], "--seeds needs at least one value"),
        (["--clip-band", "0.5", "0.2"], "--clip-band"),
        (["--data", "shakespeare", "--num-heads", "3"], "--d-embed must be divisible by"),
        (["--deltas", "0"], "--deltas must"),
        (["--adam-lr", "0"], "--adam-lr, --muon-lr or --lr-scales"),
        (["--num-blocks", "0"], "--num-blocks must be at least 1"),
        (["--seeds", "-1"], "--seeds must"),
        (["--out", "~nosuchuser/x"], "no home directory"),
    ],
)
def test_impossible_ablations_are_refused_before_data_are_needed(more, message, tmp_path, monkeypatch):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=message):
        ablate(more)
