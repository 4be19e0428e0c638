"""What is compiled is kept, and nothing that happens to what is kept breaks, changes or tells anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lipzoo.system import compiled
from lipzoo.system.compiled import THEIRS, _shrink
from lipzoo.train.load import load

PROGRAM = """
import sys
import jax
import numpy as np
from lipzoo.system.compiled import forget_compiled
from lipzoo.system.terminal import guarded

def main():
    if "off" in sys.argv:
        forget_compiled()
    function = jax.jit(lambda x: jax.numpy.linalg.qr(jax.numpy.tanh(x @ x.T) @ x)[0])
    print(np.asarray(function(np.eye(9) + 0.1)).tobytes().hex())
    return 0

sys.exit(guarded(main))
"""


def run(data, *arguments, **more):
    """What the program prints; it is silent on stderr."""
    environment = {key: value for key, value in os.environ.items() if key not in THEIRS}
    # Without the tests' flags, and with every compilation worth keeping.
    environment |= {"LIPZOO_DATA_DIR": str(data), "XLA_FLAGS": "", **more}
    program = f"import lipzoo.system.compiled as c; c.WORTH = 0.0\n{PROGRAM}"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def entries(data):
    return sorted(Path(data).glob("compiled/*/*-cache"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("data"), "off")


def test_what_is_compiled_is_kept_and_gives_the_same_bits(tmp_path, expected):
    assert run(tmp_path) == expected
    kept = {path: path.stat().st_mtime_ns for path in entries(tmp_path)}
    assert kept
    assert run(tmp_path) == expected
    assert {path: path.stat().st_mtime_ns for path in entries(tmp_path)} == kept


def test_damage_is_compiled_anew(tmp_path, expected):
    assert run(tmp_path) == expected
    for damage in (lambda b: b[:100], lambda b: b"", lambda b: b[:99] + bytes(x ^ 90 for x in b[99:140]) + b[140:]):
        for path in entries(tmp_path):
            path.write_bytes(damage(path.read_bytes()))
        assert run(tmp_path) == expected


def test_where_nothing_can_be_kept_nothing_is(tmp_path, expected):
    (tmp_path / "compiled").write_text("a file")
    assert run(tmp_path) == expected
    assert run("/proc/nowhere") == expected
    assert run("~nobody.of.this.name/data") == expected


@pytest.mark.parametrize("theirs", [{"JAX_ENABLE_COMPILATION_CACHE": "false"}, {"JAX_COMPILATION_CACHE_DIR": "theirs"}])
def test_what_the_user_says_comes_first(tmp_path, expected, theirs):
    more = {key: value.replace("theirs", str(tmp_path / "theirs")) for key, value in theirs.items()}
    assert run(tmp_path, **more) == expected
    assert not (tmp_path / "compiled").exists()


def test_it_can_be_switched_off(tmp_path, expected):
    assert run(tmp_path, "off") == expected
    assert not entries(tmp_path)


def test_what_is_oldest_goes_when_the_room_is_full(tmp_path, monkeypatch):
    for age in range(10):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    _shrink(tmp_path)
    assert len(list(tmp_path.iterdir())) == 10
    monkeypatch.setattr(compiled, "LARGEST", 80)
    _shrink(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{age}-cache" for age in range(4)]


@pytest.mark.slow
def test_a_recipe_keeps_what_it_compiles_unless_told_otherwise_and_ends_with_the_same_weights(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key not in THEIRS}
    environment["LIPZOO_DATA_DIR"] = str(tmp_path / "data")
    weights, kept = [], []
    for number, more in enumerate((["--no-compilation-cache"], [], [])):
        run = tmp_path / str(number)
        words = ["recipes.digits_mlp", "--steps", "20", "--width", "16", "--run-dir", str(run), *more]
        done = subprocess.run(
            [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        weights.append(load(run).sha256)
        kept.append(set(entries(tmp_path / "data")))
    assert len(set(weights)) == 1
    assert not kept[0]
    assert kept[1] <= kept[2], "on a busy machine more of what is compiled takes long enough to be kept"
    assert kept[1]
