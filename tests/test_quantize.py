"""Quantized checkpoints: small, loadable, and never further from the original than proved, also under attack."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.cli.train import guarded
from lipzoo.data import TextConfig
from lipzoo.models import GPTConfig
from lipzoo.quantize import _main, pack, scales
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.theory.geometry import DENSE, ROWS
from lipzoo.theory.weight import Weight, map_weights, weights
from lipzoo.train.checkpoint import save_model, save_weights
from lipzoo.train.packed import PACKINGS, SCALE, decode, row_axis, unpacked
from lipzoo.train.reading import Damaged

SCALED = ("int8", "float8_e4m3")


@pytest.fixture
def quantize(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["quantize", *map(str, arguments)])
        status = guarded(_main)
        return status, *capsys.readouterr()

    return run


def matrices():
    rng = np.random.default_rng(0)
    uneven = rng.normal(size=(8, 40)) * np.logspace(-40, 6, 8)[:, None]
    uneven[3] = 0
    outlier = rng.normal(size=(6, 30))
    outlier[:, 4] = 1e3
    return {
        "normal": (DENSE, rng.normal(size=(20, 50))),
        "heads": (DENSE, rng.normal(size=(3, 10, 7))),
        "uneven": (DENSE, uneven),
        "outlier": (DENSE, outlier),
        "constant": (DENSE, np.ones((5, 9))),
        "rows": (ROWS, rng.normal(size=(30, 12, 1)) * rng.uniform(0, 5, size=(30, 1, 1))),
    }


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("case", matrices())
def test_scales_are_no_worse_than_those_of_the_largest_entries(case, kind):
    """Norms by NumPy's SVD; a matrix whose entries are all alike is met exactly."""
    geometry, array = matrices()[case]
    weight, packing = Weight(array.astype(np.float32), "w", geometry), PACKINGS[kind]
    axis = row_axis(weight)
    assert axis is not None
    values = weight.array.astype(np.float64)

    def error(scale):
        found = decode(packing.encode(values, scale), scale)
        assert found.dtype == np.float32
        return np.linalg.svd(found - values, compute_uv=False).max(-1)

    top = abs(values).max(axis, keepdims=True) / packing.largest
    plain = error(np.where(top > 0, top, 1).clip(2.0**-126).astype(np.float32))
    chosen = error(scales(weight, axis, packing))
    assert (chosen <= plain * (1 + 1e-6)).all()
    assert np.isfinite(chosen).all()
    if case == "constant":
        assert chosen < 1e-6
    elif case != "uneven":
        assert (chosen < 0.2 * np.linalg.svd(values, compute_uv=False).max(-1)).all()


def test_a_smaller_scale_is_taken_where_it_is_nearer():
    """One row whose largest entry is just above a code: divided by less, all entries are codes."""
    row = np.array([[448.0, 7.5, 3.25, 1.625]], np.float32) * 1.5
    weight = Weight(row, "w")
    scale = scales(weight, -1, PACKINGS["float8_e4m3"])
    assert np.array_equal(decode(PACKINGS["float8_e4m3"].encode(row, scale), scale), row)


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_quantized_run_is_near_the_original_and_works_with_every_tool(kind, digits_run, tmp_path, quantize):
    out = tmp_path / "out"
    status, said, err = quantize(digits_run, out, "--format", kind, "--examples", "50")
    assert (status, err) == (0, "")
    assert "on disk" in said
    value = json.loads((out / "quantization.json").read_text())
    one, other = lipzoo.load(digits_run), lipzoo.load(out)
    assert other.stored == kind
    assert value["bytes"][1] < value["bytes"][0]
    packed = sum(array.nbytes for array in pack(one.model, PACKINGS[kind]).values())
    assert packed < 0.55 * sum(weight.array.nbytes for weight in weights(one.model))
    assert abs(value["original"]["val_accuracy"] - value["quantized"]["val_accuracy"]) < 0.1
    found = ascent(one.model, other.model)
    assert value["measured_largest_rms"] <= value["proved_distance_rms"]
    assert 0 < found <= value["proved_distance_rms"]
    assert lipzoo.Certificate.of(other.model).lipschitz < 2 * lipzoo.Certificate.of(one.model).lipschitz
    assert quantize(out, tmp_path / "again")[0] == 2
    assert "already holds a run" in quantize(digits_run, out)[2]


def ascent(one, other):
    """The largest distance that gradient ascent finds, over inputs of RMS norm 1, in float32."""
    x = jax.random.normal(jax.random.key(0), (64, 64))

    def normal(x):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True))

    def apart(x):
        return jnp.sqrt(((jax.vmap(one)(x) - jax.vmap(other)(x)) ** 2).mean(-1))

    step = jax.jit(lambda x: normal(x + 0.3 * normal(jax.grad(lambda x: apart(x).sum())(x))))
    x = normal(x)
    for _ in range(50):
        x = step(x)
    return float(np.sqrt(np.mean((np.asarray(jax.vmap(one)(x)) - np.asarray(jax.vmap(other)(x))) ** 2, -1)).max())


def test_a_text_model_runs_quantized(tmp_path, quantize):
    config = GPTConfig(depth=1, width=16, heads=2, zero_init=False)
    recipe = Recipe("text", config, TextConfig("pydoc", seq_len=32).complete())
    save_model(tmp_path / "text", 3, recipe.build_model(jax.random.key(0)), recipe)
    status, _, err = quantize(tmp_path / "text", tmp_path / "small", "--examples", "2")
    assert (status, err) == (0, "")
    value = json.loads((tmp_path / "small" / "quantization.json").read_text())
    assert value["measured_largest_rms"] <= value["proved_distance_rms"] < 1


@pytest.mark.parametrize(("kind", "status"), [("int8", 0), ("float8_e4m3", 0), ("bfloat16", 2)])
def test_the_largest_number_is_held_or_refused_and_nothing_left_behind(kind, status, digits_run, tmp_path, quantize):
    loaded, big = lipzoo.load(digits_run), tmp_path / "big"
    name, most = weights(loaded.model)[0].name, np.finfo(np.float32).max
    save_model(
        big,
        1,
        map_weights(lambda w: w.with_array(w.array.at[0, 0].set(most)) if w.name == name else w, loaded.model),
        loaded.recipe,
    )
    got, _, err = quantize(big, tmp_path / "out", "--format", kind, "--examples", "2")
    assert got == status, err
    assert (tmp_path / "out").exists() == (status == 0)


def test_a_run_is_not_written_into_itself(digits_run, quantize):
    for out in (digits_run / "checkpoints" / "q", digits_run / "q"):
        assert "lies in the run itself" in quantize(digits_run, out)[2]
        assert not out.exists()


def test_training_does_not_go_on_from_it(digits_run, tmp_path, quantize):
    from lipzoo.train.contents import newest_whole

    quantize(digits_run, tmp_path / "out", "--examples", "1")
    with pytest.raises(UserError, match="weights alone"):
        newest_whole(tmp_path / "out")


def test_what_is_no_scale_and_no_format_is_refused(digits_run, tmp_path):
    loaded = lipzoo.load(digits_run)
    arrays = pack(loaded.model, PACKINGS["int8"])
    name = next(weight.name for weight in weights(loaded.model)) + SCALE
    arrays[name] = -arrays[name]
    with pytest.raises(Damaged, match="positive"):
        unpacked(loaded.model, arrays, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    save_weights(tmp_path, 1, arrays, loaded.recipe, "int4")
    with pytest.raises(UserError, match="int4"):
        lipzoo.load(tmp_path)
