"""The tool lipzoo export: what goes into a file, and that every tool takes it."""

import dataclasses
import json
import shlex
import sys

import jax
import pytest

import lipzoo
from lipzoo import compare, quantize
from lipzoo.certify.__main__ import _main as certify_main
from lipzoo.cli.run import train
from lipzoo.cli.train import parse
from lipzoo.data import TextConfig
from lipzoo.evaluate.__main__ import _main as evaluate_main
from lipzoo.export import _main, command_of, export
from lipzoo.models import GPTConfig
from lipzoo.recipe.largest_step import fitted
from lipzoo.recipe.recipe import Recipe
from lipzoo.sample import _main as sample_main
from lipzoo.sweep.runs import base_of
from lipzoo.sweep.settings import with_setting
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import guarded
from lipzoo.train.checkpoint import save_model
from lipzoo.train.exported import read, read_notes
from recipes import digits_mlp
from tests.conftest import SMALL_RUN
from tests.recipe.test_recipe import make


@pytest.fixture
def tool(monkeypatch, capsys):
    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["tool", *map(str, arguments)])
        status = guarded(main)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def exported(digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(digits_run, tmp_path / "digits.safetensors", tighten=0)
    return tmp_path / "digits.safetensors"


def test_the_command_writes_a_file_that_says_what_it_is(digits_run, tmp_path, tool):
    out = tmp_path / "digits.safetensors"
    status, said, err = tool(_main, digits_run, out, "--tighten", "0")
    assert (status, err) == (0, "")
    assert said.startswith(f"wrote {out}: step 60 of digits_mlp, L = ")
    notes = read_notes(out)
    assert (notes["step"], notes["weights"], notes["stored"]) == ("60", "model", "float32")
    assert "evaluation" not in notes
    assert notes["certificate"]["certified"]["lipschitz"] >= 1


def test_the_certificate_in_a_file_is_what_certify_says_of_it_and_of_the_run(exported, digits_run, tmp_path, tool):
    noted = read_notes(exported)["certificate"]
    for place in (exported, digits_run):
        status, out, _ = tool(certify_main, place, "--json", "--tighten", "0")
        assert status == 0
        value = json.loads(out)
        assert value | {"checkpoint": ""} == noted | {"checkpoint": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["digits.safetensors"]


def test_evaluate_takes_a_file_and_its_results_go_beside_runs(exported, tmp_path, tool):
    flags = ("--images", "0", "--no-tightness", "--tighten", "0")
    assert tool(evaluate_main, exported, *flags)[0] == 0
    assert (tmp_path / "runs" / "digits" / "evaluation.json").exists()
    notes = export(exported, tmp_path / "again.safetensors", tighten=0)
    assert notes["evaluation"]["clean_accuracy"] > 0.5
    assert notes["evaluation"]["checkpoint"] == "again.safetensors"


def test_an_evaluation_of_other_weights_is_left_out(run_copy, tmp_path, capsys):
    path = run_copy / "evaluation.json"
    for text, why in (('{"weights_sha256": "0"}', "is about other weights"), ("[", "cannot be read"), ("[]", "cannot")):
        path.write_text(text)
        assert "evaluation" not in export(run_copy, tmp_path / "out.safetensors", tighten=0)
        err = capsys.readouterr().err
        assert f"warning: {path} {why}" in err
        assert "run lipzoo evaluate again" in err


KINDS = (("", "int8"), (":scale", "float32"))


def test_quantized_weights_stay_so_and_other_tools_take_files(exported, tmp_path):
    with quantize.waiting("", None) as wait:
        quantize.quantize(exported, tmp_path / "small", "int8", 10, wait)
    notes = export(tmp_path / "small", tmp_path / "small.safetensors", tighten=0)
    assert notes["stored"] == "int8"
    kinds = {name: array.dtype.name for name, array in read(tmp_path / "small.safetensors").arrays.items()}
    assert kinds == {n + s: t for n in ("head", "layers.0", "layers.1") for s, t in KINDS}
    one, other = lipzoo.load(tmp_path / "small"), lipzoo.load(tmp_path / "small.safetensors")
    assert (one.sha256, other.stored) == (other.sha256, "int8")
    assert compare.compare(exported, tmp_path / "small.safetensors", 10).to_json()["proved_distance_rms"] > 0


@pytest.mark.parametrize("kind", ["float8_e4m3", "bfloat16"])
def test_all_formats_are_read_back(kind, exported, tmp_path):
    with quantize.waiting("", None) as wait:
        quantize.quantize(exported, tmp_path / "small", kind, 1, wait)
    export(tmp_path / "small", tmp_path / "small.safetensors", tighten=0)
    assert lipzoo.load(tmp_path / "small.safetensors").sha256 == lipzoo.load(tmp_path / "small").sha256


def test_the_mean_of_the_weights_is_exported_if_there_is_one(digits_run, tmp_path):
    run = tmp_path / "run"
    recipe = make(**SMALL_RUN | {"steps": 4, "save_interval": 4, "val_interval": 4}, ema=0.9)
    assert train(recipe, run, resume=False) == 0
    notes = export(run, tmp_path / "mean.safetensors", average=True, tighten=0)
    found = lipzoo.load(tmp_path / "mean.safetensors")
    assert notes["weights"] == "average"
    assert found.sha256 == lipzoo.load(run, item="average").sha256 == lipzoo.load(run / "ema").sha256
    assert found.sha256 != lipzoo.load(run).sha256
    assert lipzoo.load(tmp_path / "mean.safetensors", item="average").sha256 == found.sha256
    with pytest.raises(UserError, match=r"keeps no mean of its weights: train it with --ema"):
        export(digits_run, tmp_path / "none.safetensors", average=True)
    export(run, tmp_path / "model.safetensors", tighten=0)
    with pytest.raises(UserError, match=r"holds one set of weights, and no mean beside it"):
        export(tmp_path / "model.safetensors", tmp_path / "none.safetensors", average=True)


def test_a_file_is_not_written_under_another_ending(digits_run, tmp_path, tool):
    status, _, err = tool(_main, digits_run, tmp_path / "out.npz")
    assert (status, err) == (2, f"error: the file to write must end in .safetensors, got {tmp_path / 'out.npz'}\n")


def test_text_models_are_sampled_from_files(tmp_path, tool):
    recipe = Recipe("text", GPTConfig(depth=1, width=16, heads=2), TextConfig("pydoc", seq_len=32).complete())
    save_model(tmp_path / "text", 3, recipe.build_model(jax.random.key(0)), recipe)
    notes = export(tmp_path / "text", tmp_path / "text.safetensors", command="python train.py")
    assert notes["command"] == "python train.py"
    said = [tool(sample_main, tmp_path / name, "--length", "9")[1] for name in ("text", "text.safetensors")]
    assert said[0] == said[1]


SETTINGS = [
    {},
    {"width": 64, "lr": 0.2, "bias": True},
    {"constraint": "none", "optimizer": "adamw", "lr": 0.001},
    {"lipschitz": 5.0, "sigma_max_overrides": ("head=1.5",)},
    {"schedule": "constant", "seed": 3},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_command_trains_the_same(setting):
    recipe = fitted(with_setting(digits_mlp.RECIPE, setting))
    command = command_of(recipe)
    assert command is not None
    program, *flags = shlex.split(command.removeprefix("python -m "))
    assert program == "recipes.digits_mlp"
    assert fitted(parse(digits_mlp.RECIPE, flags).recipe) == recipe


def test_how_a_run_is_looked_at_is_no_part_of_its_command():
    training = dataclasses.replace(digits_mlp.RECIPE.training, log_interval=7, keep=9)
    command = command_of(dataclasses.replace(digits_mlp.RECIPE, training=training))
    assert command == "python -m recipes.digits_mlp"


def test_a_recipe_that_does_not_come_with_the_library_has_no_command():
    recipe = base_of("digits_mlp", None).recipe
    for name in ("of_my_own", "", "../digits_mlp", "__init__", "shakespeare_gpt"):
        assert command_of(Recipe(name, recipe.model, recipe.data)) is None
