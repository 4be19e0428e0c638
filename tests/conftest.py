"""Eight fake CPU devices, no network, strict promotion, and what several test files share.

Half of the time of most tests is XLA's, which optimizes what then runs for milliseconds. So it optimizes little here,
also in the processes that tests start, but for tests marked `optimized`: what rounding does in real training.
"""

import os
from importlib.metadata import version
from pathlib import Path

from tests.offline import sitecustomize  # From here on the network is forbidden, and in what tests start too:

os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(sitecustomize.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # Nothing is to depend on what was compiled before.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # What is lowered need not know its lines of Python.

import atexit
import gc
import itertools
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from jax._src import compiler

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
jax.devices()  # From here on flags are read by the processes that tests start alone.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""Takes another half off the time of compilation, where little is optimized."""
FLAGS = ""
if version("jax").startswith("0.10."):  # Others may not know these, and XLA ends a process that gives such.
    FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())
    os.environ["XLA_FLAGS"] += f" {FLAGS}"
    options_of = compiler.get_compile_options

    def quick_options(*arguments: Any, **named: Any) -> Any:
        """What jax compiles by, and these."""
        options = options_of(*arguments, **named)
        if jax.config.read("jax_disable_most_optimizations"):
            options.env_option_overrides = [*options.env_option_overrides, *QUICK.items()]
        return options

    compiler.get_compile_options = quick_options

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 50, 50)  # Tracing makes many objects and little garbage, and jax clears up as well each time.


SMALL_RUN = {
    "width": 16,
    "batch_size": 64,
    "steps": 60,
    "save_interval": 20,
    "val_interval": 20,
    "log_interval": 10,
    "sigma_max": 2.0,
}


REAL_DATA = {"cifar_dir", "shakespeare_dir", "wikipedia_dir"}


def pytest_collection_modifyitems(items):
    """`-m real_data` chooses the tests that need what these fixtures find."""
    for item in items:
        if REAL_DATA & set(item.fixturenames):
            item.add_marker("real_data")


@pytest.fixture(autouse=True)
def _optimized(request):
    """Compiles as users' programs are compiled where a test is marked so."""
    chosen = request.node.get_closest_marker("optimized") is not None
    if chosen == jax.config.read("jax_disable_most_optimizations"):
        from lipzoo.train.step import make_train_step

        make_train_step.cache_clear()  # What is in there was compiled otherwise.
    jax.config.update("jax_disable_most_optimizations", not chosen)


MOST_MAPS = 25_000
"""Linux gives a process 65,530 pieces of memory, and each compiled function takes a dozen: XLA dies of the next."""


CLOCK = itertools.count()


@pytest.fixture(autouse=True)
def _forgetful():
    """Forgets what was compiled before there is too much of it."""
    yield
    maps = Path("/proc/self/maps")
    if next(CLOCK) % 8 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        from lipzoo.train.step import make_train_step, make_train_steps

        make_train_step.cache_clear()
        make_train_steps.cache_clear()
        jax.clear_caches()
        gc.collect()


if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)  # Freeing what was compiled takes minutes, and the system frees it in no time.


@pytest.fixture
def getkey():
    """A function that returns a new random key at each call."""
    counter = itertools.count()
    return lambda: jax.random.key(next(counter))


def svd_norm(matrix):
    """The RMS→RMS norm by NumPy alone: the oracle for everything that claims to bound it."""
    matrix = np.asarray(matrix).astype(np.float64)
    return np.linalg.svd(matrix, compute_uv=False)[..., 0] * np.sqrt(matrix.shape[-1] / matrix.shape[-2])


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A finished run on digits: read it, and copy it before changing anything."""
    from lipzoo.cli.run import train
    from tests.recipe.test_recipe import make

    run = tmp_path_factory.mktemp("runs") / "digits"
    assert train(make(**SMALL_RUN), run, resume=False) == 0
    return run


@pytest.fixture
def run_copy(digits_run, tmp_path):
    """The finished run, to be damaged at will."""
    return shutil.copytree(digits_run, tmp_path / "run")


@pytest.fixture(scope="session")
def cifar_dir():
    """The cache with CIFAR-10 in it; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("LIPZOO_DATA_DIR", "~/.cache/lipzoo")).expanduser()
    if not (folder / "cifar-10-batches-bin" / "test_batch.bin").exists():
        pytest.skip("CIFAR-10 is not in LIPZOO_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def shakespeare_dir():
    """The cache with tiny Shakespeare in it; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("LIPZOO_DATA_DIR", "~/.cache/lipzoo")).expanduser()
    if not (folder / "tinyshakespeare" / "input.txt").exists():
        pytest.skip("tiny Shakespeare is not in LIPZOO_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def wikipedia_dir():
    """The cache with token shards of Wikipedia and GPT-2's BPE in it; tests that need them are skipped elsewhere."""
    folder = Path(os.environ.get("LIPZOO_DATA_DIR", "~/.cache/lipzoo")).expanduser()
    for needed in ("wikipedia_gpt2/wikipedia_train_000001.bin", "gpt2_bpe/encoder.json"):
        if not (folder / needed).exists():
            pytest.skip(f"{needed} is not in LIPZOO_DATA_DIR")
    return folder
