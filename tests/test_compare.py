"""Two checkpoints: never further apart than proved, and refused where that would be said of something else."""

import json
import sys

import jax
import numpy as np
import pytest

import lipzoo
from lipzoo.certify.deviation import Beside
from lipzoo.cli.train import guarded
from lipzoo.compare import _main, compare
from lipzoo.data import TextConfig
from lipzoo.models import GPT, MLP, GPTConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.weight import map_weights
from lipzoo.train.checkpoint import save_model


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A GPT with fresh weights, as a checkpoint of text."""
    run = tmp_path_factory.mktemp("runs") / "text"
    config = GPTConfig(depth=1, width=16, heads=2, zero_init=False)
    recipe = Recipe("text", config, TextConfig("pydoc", seq_len=32).complete())
    save_model(run, 3, recipe.build_model(jax.random.key(0)), recipe)
    return run


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    status = guarded(_main)
    return status, *capsys.readouterr()


def test_two_steps_of_a_run_are_no_further_apart_than_proved(digits_run, monkeypatch, capsys):
    first, second = (digits_run / "checkpoints" / step for step in ("40", "60"))
    status, out, err = run(monkeypatch, capsys, first, second, "--json")
    assert (status, err) == (0, "")
    value = json.loads(out)
    one, other = (lipzoo.load(path).model for path in (first, second))
    x = np.random.default_rng(0).uniform(-1, 1, size=(500, 64)).astype(np.float32)
    x = x / np.sqrt((x**2).mean(1, keepdims=True))
    apart = np.asarray(jax.vmap(one)(x)) - np.asarray(jax.vmap(other)(x))
    assert 0 < np.sqrt((apart**2).mean(1)).max() <= value["proved_distance_rms"]
    assert 0 < value["measured_mean_rms"] <= value["measured_largest_rms"] <= value["proved_distance_rms"]
    assert [part["name"] for part in value["weights"]] == ["layers.0", "layers.1", "head"]
    assert max(part["alone_rms"] for part in value["weights"]) <= value["proved_distance_rms"]
    status, out, _ = run(monkeypatch, capsys, first, second)
    assert status == 0
    assert "Where it comes from" in out


def test_a_pruned_network_is_no_further_than_proved(digits_run, tmp_path):
    """A tenth of all weights set to zero, the smallest ones."""
    loaded = lipzoo.load(digits_run)

    def prune(weight):
        size = abs(np.asarray(weight.array))
        return weight.with_array(jax.numpy.where(size < np.quantile(size, 0.1), 0.0, weight.array))

    save_model(tmp_path, 60, map_weights(prune, loaded.model), loaded.recipe)
    found = compare(digits_run, tmp_path)
    assert 0 < found.largest <= found.proved < 1


def test_a_checkpoint_is_no_distance_from_itself(text_run):
    found = compare(text_run, text_run, examples=3)
    assert found.proved == found.largest == 0


def test_other_architectures_and_missing_runs_are_sentences(digits_run, text_run, tmp_path, monkeypatch, capsys):
    for second, words in ((text_run, "two architectures"), (tmp_path, "no finished checkpoint")):
        status, out, err = run(monkeypatch, capsys, digits_run, second)
        assert (status, out) == (2, "")
        assert words in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("change", [{"softmax_scale": 2.0}, {"residual_scale": 0.5}, {"final_scale": 2.0}])
def test_weights_that_are_computed_with_otherwise_are_no_counterpart(change):
    """A bound of the first network's map would say nothing of the second's."""
    config = {"width": 16, "heads": 2, "depth": 1}
    first, second = (GPT(5, GPTConfig(**config, **more), key=jax.random.key(0)) for more in ({}, change))
    with pytest.raises(ValueError, match="computed with otherwise"):
        Beside(first, second)


def test_caps_and_shares_may_differ():
    first, second = (MLP(4, 8, 3, depth=2, cap=cap, key=jax.random.key(0)) for cap in (1.0, 2.0))
    beside = Beside(first, second)
    assert beside.difference(beside.first.matrices()[0]) >= 0
