"""The command: what it prints and writes, and what it refuses."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest

from lipzoo.data import TextConfig, digits, image_config
from lipzoo.evaluate import __main__ as command
from lipzoo.evaluate.attack import Attacked, Strength
from lipzoo.evaluate.run import Effort, alarm, evaluate
from lipzoo.models import GPTConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.terminal import guarded
from lipzoo.train.checkpoint import save_model

QUICK = ["--images", "20", "--steps", "5", "--restarts", "2", "--boundary-steps", "20"]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A GPT with fresh weights, as a checkpoint of text."""
    run = tmp_path_factory.mktemp("runs") / "text"
    config = GPTConfig(depth=2, width=16, heads=2, zero_init=False, softmax_scale=4.0)
    recipe = Recipe("text", config, TextConfig("pydoc", alphabet="\n abcdefghijklmnopqrstuvwxyz"))
    save_model(run, 3, recipe.build_model(jax.random.key(0)), recipe)
    return run


def run(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the command line."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    status = guarded(command._main)
    out, err = capsys.readouterr()
    return status, out, err


def test_a_run_is_evaluated_and_written_beside_its_checkpoints(run_copy, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, run_copy, *QUICK)
    assert (status, err) == (0, "")
    for word in (
        "36/255",
        "255/255",
        "certified",
        "attacked",
        "p(true)",
        "360 test images",
        "first 20",
    ):
        assert word in " ".join(out.split())
    value = json.loads((run_copy / "evaluation.json").read_text())
    assert value["schema"] == 1
    assert value["images"] == 360
    assert value["certified_accuracy"] == sorted(value["certified_accuracy"], reverse=True)
    assert max(value["certified_accuracy"]) <= value["clean_accuracy"]
    pairs = zip(value["certified_accuracy_of_first"], value["attacked_accuracy"], strict=True)
    assert all(certified <= attacked for certified, attacked in pairs)
    assert value["violations"] == []
    with np.load(run_copy / "radii.npz") as radii, np.load(run_copy / "adversaries.npz") as found:
        assert radii["radius"].shape == (360,)
        assert found["nearest"].shape == (20, 64)
        right = (radii["label"] == radii["prediction"])[:20]
        assert (found["distance"][right] >= radii["radius"][:20][right]).all()
        assert (found["distance"][~right] == 0).all()


def test_json_is_what_is_written_and_several_runs_are_compared(run_copy, tmp_path, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, run_copy, "--images", "0", "--json", "--epsilons", "0.1", "1/2")
    assert status == 0
    assert json.loads(out) == json.loads((run_copy / "evaluation.json").read_text())
    assert json.loads(out)["epsilons_l2"] == [0.1, 0.5]
    other = shutil.copytree(run_copy, tmp_path / "other")
    status, out, _ = run(monkeypatch, capsys, run_copy, other, "--images", "0")
    assert status == 0
    assert "Certified accuracy" in out


def test_an_adversary_within_a_certified_radius_is_an_alarm(run_copy, tmp_path, capsys):
    found = evaluate(run_copy, (0.1, 0.5), Effort(4, strength=Strength(2, 1, 2)))
    index = int(np.flatnonzero(found.radii.correct[:4])[0])
    distance = np.array(found.attacked.distance)
    distance[index] = found.radii.radius[index] / 2
    wrong = dataclasses.replace(found, attacked=Attacked(found.attacked.nearest, distance, found.attacked.probability))
    assert alarm(found, tmp_path) == 0
    assert alarm(wrong, tmp_path) == 1
    assert f"ALARM: adversaries within the certified radius of images {index}" in capsys.readouterr().err
    with np.load(tmp_path / "violations.npz") as stored:
        assert stored["index"].tolist() == [index]


REFUSED = [
    ([], "give the directory of a run"),
    (["{run}", "--epsilons", "36/0"], "--epsilons takes numbers and fractions such as 36/255, got '36/0'"),
    (["{run}", "--epsilons", "-1"], "--epsilons must be positive"),
    (["{run}", "--epsilons", "x"], "--epsilons takes numbers"),
    (["{run}", "--epsilons"], "--epsilons needs at least one distance"),
    (["{run}", "--steps", "0"], "--steps must be at least 1"),
    (["{run}/nowhere"], "is not a directory"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_cannot_be_evaluated_is_told_in_a_sentence(arguments, message, digits_run, monkeypatch, capsys):
    arguments = [part.replace("{run}", str(digits_run)) for part in arguments]
    status, _, err = run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_around_each_image_radii_are_at_least_as_large_and_no_adversary_is_nearer(run_copy):
    found = evaluate(run_copy, (0.1, 0.3), Effort(60, strength=Strength(10, 2, 40), tighten=4))
    assert found.count == 60
    assert (found.local >= found.radii.running[:60]).all()
    right = found.radii.correct[:60]
    assert (found.attacked.distance[right] >= found.local[right]).all()
    assert found.local_gain > 1
    assert found.violations() == []
    assert "<table>" in found._repr_html_()
    assert "Tightness" in found._repr_html_()
    assert "<table>" in found.certificate._repr_html_()


def test_a_prompt_is_evaluated_and_written(text_run, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, text_run, "--prompt", "abc", "--epsilons", "0.01", "0.2")
    assert (status, err) == (0, "")
    for word in ("After 'abc'", "ε = 0.01", "any 1 of 3 tokens", "KL, nats", "Next token", "likeliest"):
        assert word in out
    value = json.loads((text_run / "prompt.json").read_text())
    first, second, third = value["changes"]
    assert 0 < first["local"]["kl_nats"] < second["local"]["kl_nats"]
    assert first["local"]["log_probability"] < first["global"]["log_probability"]
    assert third["global"] is None
    status, out, _ = run(monkeypatch, capsys, text_run, "--prompt", "abc", "--json", "--substitutions", "0")
    assert status == 0
    assert len(json.loads(out)["changes"]) == 3


def test_what_is_no_image_has_no_radius(text_run, digits_run, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, text_run)
    assert status == 2
    assert "holds a model of text, and radii are of images: give --prompt" in err
    status, _, err = run(monkeypatch, capsys, digits_run, "--prompt", "abc")
    assert status == 2
    assert "holds no model of text" in err
    status, _, err = run(monkeypatch, capsys, text_run, "--prompt", "abc", "--substitutions", "7")
    assert status == 2
    assert "take a shorter prompt, or fewer substitutions" in err
    assert "Traceback" not in err


def test_pixels_that_are_no_numbers_are_told(run_copy, monkeypatch, capsys):
    images = digits.load_digits()
    test = dataclasses.replace(images.test, input=images.test.input.astype(np.float32) * np.nan)
    source = image_config.ImageSource(lambda: dataclasses.replace(images, test=test), digits.FORM)
    monkeypatch.setitem(image_config.SOURCES, "digits", source)
    status, _, err = run(monkeypatch, capsys, run_copy)
    assert status == 2
    assert "hold NaN or infinite pixels" in err
