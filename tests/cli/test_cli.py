"""The command line: flags without subcommands, and one sentence for every mistake."""

import dataclasses
import re
import sys

import pytest

from lipzoo.cli.train import main, parse
from lipzoo.data import cifar
from lipzoo.devices.processes import ProcessConfig
from lipzoo.optim import EBCConfig
from lipzoo.recipe.unused import named_fields
from lipzoo.system.errors import UserError
from recipes import cifar_mlp, digits_mlp
from tests.recipe.test_recipe import PARTS


def run(monkeypatch, capsys, *arguments, recipe=digits_mlp.RECIPE):
    """(exit status, stdout, stderr) of a recipe's command line."""
    monkeypatch.setattr(sys, "argv", ["recipe", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main(recipe)
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_flags_of_all_parts_stand_side_by_side():
    line = parse(
        cifar_mlp.RECIPE,
        [
            *("--constraint", "svd-cap", "--sigma-max", "6", "--optimizer", "adamw", "--width", "64", "--mesh", "2"),
            *("--lr", "0.01", "--random-flip", "--constraint-overrides", "head=none", "layers.0=hard-cap"),
        ],
    )
    recipe = line.recipe
    assert (recipe.constraint.constraint, recipe.constraint.sigma_max) == ("svd-cap", 6.0)
    assert recipe.constraint.constraint_overrides == ("head=none", "layers.0=hard-cap")
    assert (recipe.optimizer.optimizer, recipe.optimizer.lr) == ("adamw", 0.01)
    assert (recipe.model.width, recipe.training.mesh, recipe.data.random_flip) == (64, "2", True)
    assert recipe.data.data == "cifar10"


def test_every_flag_has_a_help_line(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(monkeypatch, capsys, "--help-all")
    assert status == 0
    text = re.sub(r"[\s│]+", " ", out)
    options = [field.name for part in [*PARTS.values(), ProcessConfig] for field in dataclasses.fields(part)]
    options += named_fields({"ebc": dataclasses.asdict(EBCConfig())})
    assert all(f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')}," in text for name in options)
    assert text.count(". (default:") == len(options) + len(["name", "run_dir", "resume", "compilation_cache"])


MISTAKES = [
    (["--constraint", "softcap"], "--constraint"),
    (["--optimizer", "sgd"], "--optimizer"),
    (["--sigma-max", "big"], "--sigma-max"),
    (["--sigma-maximum", "3"], "--sigma-maximum"),
    (["--sigma-max", "0"], "the cap of layers.0 must lie between"),
    (["--sigma-max", "inf"], "--sigma-max must be finite, got inf"),
    (["--embedding-cap", "nan"], "--embedding-cap must be finite, got nan"),
    (["--ebc.target-kl", "nan"], "--ebc.target-kl must be finite, got nan"),
    (["--steps", "3000000000"], "--steps must be at most 2,147,483,647"),
    (["--width", "100000"], "GiB of memory"),
    (["--run-dir", ""], "a path is empty"),
    (["--resume", ""], "a path is empty"),
    (["--run-dir", "~nosuchuser/x"], "no home directory"),
    (["--resume", "~nosuchuser/x"], "no home directory"),
    (["--run-dir", "\udcff"], "not UTF-8"),
    (["--lr", "-1"], "--lr must be positive"),
    (["--lr", "500"], "--lr 500 is too high for layers.0: soft-cap absorbs updates"),
    (
        ["--constraint-overrides", "nose=none"],
        "is called 'nose'; those are layers.0, layers.1, head",
    ),
    (["--mesh", "64"], "--mesh 64 needs 64 devices, but there are 8 (cpu)"),
    (["--resume", "/nowhere"], "/nowhere holds neither recipe.json nor checkpoints"),
    (["--run-dir", "/dev/null/run"], "cannot write to /dev/null/run"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes_end_with_status_2_and_say_what_to_do(arguments, message, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, *arguments, "--batch-size", 64)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_missing_cifar10_without_a_network(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    unreachable = dataclasses.replace(cifar.CIFAR10, url="http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr("lipzoo.data.cifar.CIFAR10", unreachable)
    arguments = ["--run-dir", tmp_path / "run"]
    status, _, err = run(monkeypatch, capsys, *arguments, recipe=cifar_mlp.RECIPE)
    assert status == 2
    assert err.startswith("error: could not download cifar-10-binary.tar.gz from http://127.0.0.1:9")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "32"], "--width 32 differs from the 16 that the run was started with"),
        (["--activation", "maxmin"], "--activation maxmin differs from the relu"),
        (["--data", "cifar10"], "--data cifar10 differs from the digits"),
    ],
)
def test_resuming_with_other_settings_is_refused(arguments, message, digits_run, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, "--resume", digits_run, *arguments)
    assert status == 2
    assert message in err


def test_a_resumed_run_takes_its_settings_from_the_run_and_may_go_further(digits_run):
    line = parse(digits_mlp.RECIPE, ["--resume", str(digits_run), "--steps", "80"])
    assert line.recipe.model.width == 16
    assert line.recipe.training.steps == 80


def test_resuming_without_any_readable_recipe(run_copy):
    (run_copy / "recipe.json").write_text("{")
    for step in (40, 60):
        (run_copy / "checkpoints" / str(step)).rename(run_copy / f"lost-{step}")
    with pytest.raises(UserError, match="recipe"):
        parse(digits_mlp.RECIPE, ["--resume", str(run_copy)])


def test_flags_of_ebc_are_prefixed_and_cannot_change_on_resume(run_copy, monkeypatch, capsys):
    line = parse(digits_mlp.RECIPE, ["--ebc.enable", "--ebc.target-kl", "0.02", "--ebc.guard.enable"])
    assert (line.recipe.ebc.enable, line.recipe.ebc.target_kl, line.recipe.ebc.guard.enable) == (True, 0.02, True)
    status, _, err = run(monkeypatch, capsys, "--resume", str(run_copy), "--ebc.controller.kp", "0.2")
    assert status == 2
    assert "--ebc.controller.kp 0.2 differs from the 0.15" in err


def test_flags_beside_resume_that_it_would_ignore(digits_run, monkeypatch, capsys, tmp_path):
    status, _, err = run(monkeypatch, capsys, "--resume", digits_run, "--run-dir", tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "--run-dir has no effect beside --resume" in err
    with pytest.raises(UserError, match="--variant has no effect on --resume"):
        parse(digits_mlp.RECIPE, ["--resume", str(digits_run), "--variant", "a"], {"a": digits_mlp.RECIPE})


def test_a_folder_named_like_markup_is_named_as_it_is(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "a :key: c"
    status, out, _ = run(monkeypatch, capsys, "--run-dir", folder, "--steps", 2, "--name", "b[/b][x]")
    assert status == 0
    assert f"run: {folder}\n" in out
    assert "b[/b][x] " in out
