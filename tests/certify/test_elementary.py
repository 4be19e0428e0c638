"""Elementary functions are off by no more than is stored for this backend."""

import json

import jax
import numpy as np
import pytest

import lipzoo
from lipzoo.certify.elementary import FUNCTIONS, error, numbers
from lipzoo.certify.run import arithmetic_of
from lipzoo.system.errors import UserError
from lipzoo.theory import functions
from lipzoo.theory.functions import CONTRACTED, UNKNOWN, arithmetic, backend


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.optimized)])
def test_what_is_stored_was_measured(name, quick):
    """On one number in 2¹². What is compiled with few optimizations rounds otherwise, within the margin for that."""
    found = error(FUNCTIONS[name], 2**12 - 3)
    known = functions.functions()
    stored = known.angle if name in ("cos", "sin") else getattr(known, name)
    assert 0 < found <= stored
    if backend() in functions._measured() and not quick:
        assert stored / CONTRACTED <= 2**-21
        assert found <= stored / CONTRACTED * (1 + 1e-9)


def test_all_numbers_are_looked_at():
    first = next(numbers(FUNCTIONS["exp"]))
    assert first[0] == 0
    assert np.array_equal(first[:100].view(np.uint32) & 0x7FFFFFFF, np.arange(100))
    assert next(numbers(FUNCTIONS["rsqrt"])).min() == np.float32(2.0**-126)


def test_an_unknown_backend_is_named_and_gets_a_wide_margin(monkeypatch, tmp_path):
    monkeypatch.setattr(functions, "backend", lambda: "abacus, version 3")
    unknown = arithmetic("float32").functions
    assert unknown.exp == unknown.angle == UNKNOWN
    assert "abacus" in unknown.source
    assert "assumed" in unknown.source
    path = tmp_path / "elementary.json"
    path.write_text(json.dumps({"abacus, version 3": dict.fromkeys(FUNCTIONS, 2.0**-22)}))
    known = arithmetic("float32", path).functions
    assert known.tanh == 2.0**-21
    assert "measured" in known.source


def test_damaged_measurements_are_named(digits_run, monkeypatch, tmp_path):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    (tmp_path / "elementary.json").write_text("{")
    with pytest.raises(UserError, match=r"elementary\.json holds no measurements"):
        arithmetic_of(lipzoo.load(digits_run), "float32")


def test_float32_on_a_gpu_is_tf32_unless_jax_was_told_otherwise(digits_run, monkeypatch):
    loaded = lipzoo.load(digits_run)
    assert arithmetic_of(loaded, None).name == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert arithmetic_of(loaded, None).name == "tf32"
    assert arithmetic_of(loaded, "float32").name == "float32"
    with jax.default_matmul_precision("highest"):
        assert arithmetic_of(loaded, None).name == "float32"
