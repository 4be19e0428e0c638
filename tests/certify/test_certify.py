"""The certificate: restored from any checkpoint, above every attack, and told plainly when it cannot be given."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.certify import __main__ as certify
from lipzoo.certify.certificate import Certificate
from lipzoo.cli.train import guarded
from lipzoo.layers.compose import PerToken
from lipzoo.layers.linear import Affine
from lipzoo.models import MLP, ConvexResidual, Linear, ReLU, Sequential
from lipzoo.theory.geometry import ENTRIES
from lipzoo.theory.space import Vector
from lipzoo.theory.weight import Weight, map_weights, weights
from tests.conftest import svd_norm


def run_certify(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the command line."""
    monkeypatch.setattr(sys, "argv", ["certify", *map(str, arguments)])
    status = guarded(certify._main)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/60", "checkpoints/40"])
def test_any_part_of_a_run_certifies_without_being_told_the_recipe(digits_run, part, monkeypatch, capsys):
    status, out, err = run_certify(monkeypatch, capsys, digits_run / part, "--json")
    assert (status, err) == (0, "")
    value = json.loads(out)
    loaded = lipzoo.load(digits_run / part)
    assert value["step"] == loaded.step == (40 if part.endswith("40") else 60)
    assert value["weights_sha256"] == loaded.sha256
    assert value["lipzoo"] == lipzoo.__version__
    assert value["recipe"]["model"]["width"] == 16
    product = np.prod([svd_norm(w.array) for w in weights(loaded.model)])
    assert product <= value["layerwise"]["lipschitz"] <= product * (1 + 1e-9)
    assert value["certified"]["lipschitz"] <= value["layerwise"]["lipschitz"] <= value["a_priori"]["lipschitz"]
    images = loaded.recipe.data.load(0).test.input[:50].astype(np.float32) / 16
    slopes = np.linalg.norm(jax.vmap(jax.jacobian(loaded.model))(images), 2, axis=(1, 2))
    assert slopes.max() <= value["lipschitz_l2"]
    assert value["a_priori"]["caps_hold"]
    assert value["log10_l2_lipschitz"] == pytest.approx(np.log10(value["lipschitz_l2"]))
    assert ("ellipsoids" in value["method"]) == (value["certified"] != value["layerwise"])
    assert json.loads((digits_run / "certificate.json").read_text()) == value


def test_the_table_shows_layers_bounds_and_what_is_covered(digits_run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = run_certify(monkeypatch, capsys, digits_run)
    assert status == 0
    for word in (
        "layers.0",
        "16×64",
        "certified",
        "a priori (caps)",
        "published formula",
        "L (ℓ₂ → ℓ₂)",
        "2e",
    ):
        assert word in " ".join(out.split())


def test_the_module_runs_without_a_warning(digits_run):
    command = [sys.executable, "-W", "error", "-m", "lipzoo.certify", str(digits_run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["step"] == 60


@pytest.mark.parametrize(("limit", "status"), [(1e6, 0), (1e-3, 1)])
def test_max_lipschitz_decides_the_exit_status(digits_run, limit, status, monkeypatch, capsys):
    got, _, err = run_certify(monkeypatch, capsys, digits_run, "--max-lipschitz", limit)
    assert got == status
    assert ("is above --max-lipschitz" in err) == (status == 1)


def overwrite(file, content=b"\0" * 64):
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + len(content)] = content
    file.write_bytes(raw)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def rescale(step):
    """A recipe that reads well but is another one."""
    file = next(p for p in (step / "recipe").rglob("*") if p.is_file() and "final_scale" in p.read_text())
    file.write_text(file.read_text().replace('"final_scale": 1.0', '"final_scale": 0.1'))


DAMAGE = [
    (lambda step: overwrite(largest_file(step / "model")), "its model"),
    (lambda step: shutil.rmtree(step / "model"), "its model is missing"),
    (lambda step: shutil.rmtree(step / "recipe"), "its recipe cannot be read"),
    (rescale, "its recipe does not have the sha256"),
    (lambda step: shutil.rmtree(step / "digests"), "its digests cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=["bytes", "no model", "no recipe", "recipe", "no digests"])
def test_damaged_checkpoints_are_named_with_what_is_left(run_copy, damage, message, monkeypatch, capsys):
    damage(run_copy / "checkpoints" / "60")
    status, out, err = run_certify(monkeypatch, capsys, run_copy)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{run_copy / 'checkpoints' / '60'} is damaged: {message}" in err
    assert f"try {run_copy / 'checkpoints' / '40'}" in err


def test_missing_and_empty_checkpoints(tmp_path, monkeypatch, capsys):
    for path, message in [(tmp_path / "nowhere", "is not a directory"), (tmp_path, "holds no finished checkpoint")]:
        status, _, err = run_certify(monkeypatch, capsys, path)
        assert status == 2
        assert message in err
    status, _, err = run_certify(monkeypatch, capsys, tmp_path, "--max-lipschitz", "nan")
    assert status == 2
    assert "--max-lipschitz" in err


def test_a_run_that_cannot_be_written_to_still_certifies(digits_run, tmp_path, monkeypatch, capsys):
    """A folder in the place of certificate.json stands for a read-only file system, which root does not see."""
    run = shutil.copytree(digits_run, tmp_path / "run")
    (run / "certificate.json").unlink()
    (run / "certificate.json" / "x").mkdir(parents=True)
    status, out, err = run_certify(monkeypatch, capsys, run, "--json")
    assert status == 0
    assert "warning: cannot write" in err
    assert json.loads(out)["step"] == 60


def test_weights_that_have_no_norm_have_no_certificate(getkey):
    model = MLP(8, 8, 4, zero_init=False, key=getkey())
    broken = map_weights(lambda w: w.with_array(w.array.at[0, 0].set(jnp.nan)), model)
    with pytest.raises(ValueError, match=r"layers\.0: the matrix holds NaN"):
        Certificate.of(broken)


def test_what_has_no_certificate_is_refused(getkey):
    twice = Sequential([MLP(8, 8, 8, key=getkey()), MLP(8, 8, 4, key=getkey())])
    with pytest.raises(ValueError, match="unique names"):  # One norm would stand for both.
        Certificate.of(twice)
    with pytest.raises(ValueError, match="without weights"):
        Certificate.of(Sequential([ReLU()]))
    for radius in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="radius"):
            Certificate.of(MLP(8, 8, 4, key=getkey()), radius)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "maxmin", "groupsort", "identity"])
def test_no_attack_exceeds_the_certificate_of_a_model_in_memory(activation, dtype, getkey):
    """Power iteration on the Jacobian at many inputs, in float64, of weights stored in `dtype`."""
    model = MLP(24, 16, 5, depth=4, activation=activation, bias=True, zero_init=False, residual=0.5, key=getkey())
    model = map_weights(lambda w: w.with_array((w.array * 1.7).astype(dtype)), model)
    certificate = Certificate.of(model)
    with jax.enable_x64(True):
        exact = map_weights(lambda w: w.with_array(w.array.astype(jnp.float64)), model)
        x = jax.random.uniform(getkey(), (64, 24), jnp.float64)
        jacobian = np.asarray(jax.vmap(jax.jacrev(exact))(x))
        outputs = np.asarray(jax.vmap(exact)(x))
    gains = np.linalg.svd(jacobian, compute_uv=False)[:, 0] * np.sqrt(24 / 5)
    assert gains.max() <= certificate.lipschitz
    assert gains.max() * np.sqrt(5 / 24) <= certificate.lipschitz * certificate.l2_factor * (1 + 1e-12)
    assert np.sqrt((outputs**2).mean(-1)).max() <= certificate.certified.radius


def test_bounds_beyond_float64_are_given_as_logarithms(getkey):
    model = MLP(8, 8, 4, depth=30, zero_init=False, key=getkey())
    huge = map_weights(lambda w: w.with_array(w.array * 1e12), model)
    value = Certificate.of(huge).to_json()
    assert value["certified"]["lipschitz"] is None
    assert value["certified"]["log10_lipschitz"] == pytest.approx(360, abs=0.1)
    assert "10^360.0" in str(Certificate.of(huge))


def test_a_constant_network_has_the_bound_zero(getkey):
    certificate = Certificate.of(MLP(8, 8, 4, key=getkey()))
    assert certificate.lipschitz == 0
    assert json.dumps(certificate.to_json(), allow_nan=False)
    assert str(certificate)


def test_shares_of_the_bound_add_up_for_a_plain_network(digits_run):
    certificate = Certificate.of(lipzoo.load(digits_run).model)
    assert sum(row.share for row in certificate.rows) == pytest.approx(1)


def test_the_pixel_constant_counts_inputs_and_outputs_not_gains(getkey):
    linear = Linear(Weight(jnp.eye(16), "w"))
    gain = Weight(jnp.ones((16, 1, 1)), "gain", ENTRIES)
    for model in (Sequential([linear, Affine(gain)]), Sequential([Affine(gain), linear]), Affine(gain)):
        assert Certificate.of(model, space=Vector((16,))).l2_factor == pytest.approx(1, abs=1e-12)
    wide = Linear(Weight(jnp.ones((4, 16)), "w"))
    assert Certificate.of(wide).l2_factor == pytest.approx(0.5, abs=1e-12)


def test_statements_name_their_domain(getkey):
    linear = Linear(Weight(jnp.eye(16), "w"))
    assert "pixels in [0, 1]" in Certificate.of(linear).statement
    assert "of RMS norm at most 0.1:" in Certificate.of(linear, radius=0.1).statement
    assert "of RMS norm at most 0.123456:" in Certificate.of(linear, radius=0.1234567).statement  # Never rounded up.
    per_token = Sequential([ConvexResidual(PerToken(linear), 0.5)])
    assert "no larger in RMS norm than 2:" in Certificate.of(per_token, radius=2.0).statement
    assert Certificate.of(per_token).l2_factor is None
    assert Certificate.of(per_token).published is None


def test_a_loaded_model_predicts_images_in_every_layout(digits_run):
    loaded = lipzoo.load(digits_run)
    test = loaded.recipe.data.load(0).test
    logits = loaded.predict(test.input)
    expected = np.asarray(jax.vmap(loaded.model)(test.input.astype(np.float32) / 16))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    for images in (test.input.reshape(-1, 1, 8, 8), test.input.reshape(-1, 8, 8, 1), test.input / 16.0):
        np.testing.assert_allclose(loaded.predict(images), logits, atol=1e-5)
    np.testing.assert_allclose(loaded.predict(test.input[0]), logits[:1], atol=1e-5)
    with pytest.raises(ValueError, match="floats from 0 to 1"):
        loaded.predict(test.input.astype(np.float32))
