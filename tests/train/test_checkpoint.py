"""Checkpoints: any state is stored and comes back bit for bit, and what is whole stays so whatever lies beside it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.cli.run import train
from lipzoo.cli.train import parse
from lipzoo.data import DataConfig
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import make_mesh
from lipzoo.models import GPTConfig, MLPConfig
from lipzoo.optim import EBCConfig, OptimizerConfig
from lipzoo.recipe.format1 import current_name
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from lipzoo.system.lock import held
from lipzoo.train import checkpoint, contents, digests
from lipzoo.train.arrays import RETIRED
from lipzoo.train.checkpoint import Checkpoints, save_model
from lipzoo.train.plan import resolve
from lipzoo.train.reading import Damaged, check_whole, find_steps
from lipzoo.train.state import State, abstract_state, init_state
from recipes import digits_mlp
from tests.conftest import SMALL_RUN
from tests.recipe.test_recipe import make

FORMAT1 = Path(__file__).parents[1] / "fixtures" / "format1_digits"
OPTIMIZERS = [{"optimizer": "muon"}, {"optimizer": "adamw"}, {"embedding_adam": True}]
EBC = [{}, {"aggregate": "l1"}, {"aggregate": "l2"}, {"aggregate": "exact"}]


def save(run, recipe, state, step=0, keep=9, **metrics):
    checkpoints = Checkpoints(run, keep)
    data = load_digits().batches(batch_size=16, count=100, seed=0)
    data.set_state({"next_index": step})
    state = State(state.model, state.opt_state, jnp.int32(step), state.key)
    checkpoints.save(jax.device_put(state, make_mesh().devices.flat[0]), data, recipe, metrics)
    checkpoints.close()
    return state


def restore(run, like, step=0):
    checkpoints = Checkpoints(run, 9)
    data = load_digits().batches(batch_size=16, count=100, seed=0)
    try:
        return checkpoints.restore(step, like, data)
    finally:
        checkpoints.close()


def assert_same(first, second):
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def steps(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def tiny():
    recipe = make(width=4, batch_size=16)
    return recipe, init_state(recipe, make_mesh())


@pytest.mark.parametrize(("optimizer", "ebc"), list(itertools.product(OPTIMIZERS, EBC)), ids=str)
def test_the_state_of_every_optimizer_and_trust_region_comes_back(optimizer, ebc, tmp_path):
    recipe = Recipe(
        model=MLPConfig(width=4, bias=True),
        data=DataConfig(batch_size=16),
        optimizer=OptimizerConfig(**optimizer),
        ebc=EBCConfig(enable=bool(ebc), **ebc),
    )
    state = save(tmp_path, recipe, init_state(recipe, make_mesh()))
    assert_same(restore(tmp_path, init_state(recipe, make_mesh())), state)


def test_a_run_with_the_exact_trust_region_ends_and_resumes(tmp_path):
    options = {**SMALL_RUN, "width": 4, "steps": 4, "save_interval": 2, "log_interval": 2}
    recipe = Recipe.from_json({**make(**options).to_json(), "ebc": {"enable": True, "aggregate": "exact"}})
    assert train(recipe, tmp_path / "run", resume=False) == 0
    assert train(recipe, tmp_path / "run", resume=True) == 0


def test_checksums_are_the_same_on_devices_and_on_the_host():
    arrays = {
        "matrix": jax.random.normal(jax.random.key(0), (1100, 1000)),
        "low": jnp.full((5,), 3, jnp.bfloat16),
        "scalar": jnp.int32(7),
        "truth": jnp.array([True, False]),
    }
    assert digests.checksums(arrays) == {name: digests.host_checksum(np.asarray(x)) for name, x in arrays.items()}


X64 = """
import jax, numpy as np, sys
from pathlib import Path
from tests.train.test_checkpoint import restore, save
from tests.recipe.test_recipe import make
from lipzoo.train.state import State, init_state
from lipzoo.devices.mesh import make_mesh
import jax.numpy as jnp
recipe = make(width=4, batch_size=16, bias=True)
state = init_state(recipe, make_mesh())
assert {w.dtype for w in jax.tree.leaves(state.model)} == {np.dtype("float32")}
there, here = map(Path, sys.argv[1:])
got = restore(there, state)
wide = State(got.model, (got.opt_state, jnp.float64(1 / 3), jnp.int64(5)), got.step, got.key)
save(here, recipe, wide)
back = restore(here, wide)
for one, other in zip(jax.tree.leaves(wide), jax.tree.leaves(back), strict=True):
    assert one.dtype == other.dtype and (one == other).all()
"""


def test_checkpoints_with_and_without_64_bits_read_each_other(tmp_path):
    recipe = make(width=4, batch_size=16, bias=True)
    state = save(tmp_path / "there", recipe, init_state(recipe, make_mesh()))
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", X64, str(tmp_path / "there"), str(tmp_path / "here")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert (done.returncode, done.stderr) == (0, "")
    narrow = State(state.model, (state.opt_state, jnp.float32(0), jnp.int32(0)), state.step, state.key)
    got = restore(tmp_path / "here", narrow)
    assert got.opt_state[1:] == (np.float32(1 / 3), 5)
    assert_same((got.model, got.opt_state[0]), (state.model, state.opt_state))


@pytest.mark.parametrize("folder", ["a[b]*?", "a\\b", "a/../c"])
def test_a_folder_may_be_called_like_a_pattern(folder, tiny, tmp_path):
    (tmp_path / "a").mkdir()
    run = tmp_path / folder / "run"
    state = save(run, *tiny)
    assert_same(restore(run, tiny[1]), state)
    assert lipzoo.load(run).step == 0


def test_what_does_not_read_back_is_told_and_nothing_older_is_removed(tiny, tmp_path, monkeypatch):
    save(tmp_path, *tiny, step=1)

    def break_file(step, item, like):
        raise Damaged("its model does not have the checksums noted when it was saved: head")

    monkeypatch.setattr(checkpoint, "check_arrays", break_file)
    with pytest.raises(UserError, match=r"does not read back as it was written \(its model does not have"):
        save(tmp_path, *tiny, step=2, keep=1)
    assert steps(tmp_path) == ["1", "2"]


def test_newest_and_best_are_kept_and_what_cannot_be_read_too(tiny, tmp_path):
    for step, loss in ((1, 0.1), (2, 0.5), (3, 0.4)):
        save(tmp_path, *tiny, step=step, val_loss=loss)
    (tmp_path / "checkpoints" / "2" / "recipe" / "metadata").write_text("{")
    save(tmp_path, *tiny, step=4, keep=1, val_loss=0.3)
    assert steps(tmp_path) == ["1", "2", "4"]


def test_odd_names_are_no_steps_and_a_copy_tells_its_own_step(tiny, tmp_path, monkeypatch):
    save(tmp_path, *tiny, step=7)
    folder = tmp_path / "checkpoints"
    for name in ("²", "007", "1e9", "8.aside", "9.orbax-checkpoint-tmp"):
        (folder / name).mkdir()
    assert find_steps(tmp_path) == [folder / "7"]
    shutil.copytree(folder / "7", folder / "a copy")
    assert lipzoo.load(folder / "a copy").step == 7
    monkeypatch.chdir(folder / "7")
    loaded = lipzoo.load(".")
    assert (loaded.step, loaded.path) == (7, folder / "7")
    shutil.copytree(folder / "7", folder / "99")
    with pytest.raises(Damaged, match="it holds step 7"):
        check_whole(folder / "99")


def test_weights_alone_can_be_loaded_and_are_no_damage_for_a_run(tiny, tmp_path):
    recipe, state = tiny
    save_model(tmp_path, 3, state.model, recipe)
    assert lipzoo.load(tmp_path).step == 3
    with pytest.raises(UserError, match="holds weights alone: no run can go on from it"):
        check_whole(tmp_path / "checkpoints" / "3")


ENDLESS = {
    "fifo": os.mkfifo,
    "device": lambda file: file.symlink_to("/dev/zero"),
    "huge": lambda file: (file.touch(), os.truncate(file, 1 << 40)),
    "deep": lambda file: file.write_text("[" * 100_000 + "]" * 100_000),
    "junk": lambda file: file.write_text("null"),
}


def test_files_without_end_are_damage_at_once(tiny, tmp_path):
    save(tmp_path, *tiny)
    step = tmp_path / "checkpoints" / "0"
    for item, how in itertools.product(("recipe", "digests", "data"), ENDLESS):
        file = step / item / "metadata"
        whole = file.read_bytes()
        file.unlink()
        ENDLESS[how](file)
        with pytest.raises(Damaged):
            check_whole(step)
        if item != "data" or how in ("fifo", "device", "huge"):  # Else the weights are whole.
            with pytest.raises(UserError, match="is damaged"):
                lipzoo.load(tmp_path)
        file.unlink()
        file.write_bytes(whole)
    check_whole(step)


def test_a_checkpoint_that_cannot_be_read_leaves_one_sentence(tiny, tmp_path):
    """The readers of its other parts end in threads of their own, after the first one."""
    save(tmp_path, *tiny)
    (tmp_path / "checkpoints" / "0" / "model" / "manifest.ocdbt").unlink()
    command = [sys.executable, "-m", "lipzoo.certify", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "is damaged: its model cannot be read" in done.stderr


def test_other_steps_are_refused_before_anything_is_changed(run_copy):
    before = (run_copy / "recipe.json").read_text()
    for wanted in (10, 50):
        with pytest.raises(UserError, match="the run has reached step 60: give --steps 60 or more"):
            train(make(**{**SMALL_RUN, "steps": wanted}), run_copy, resume=True)
    assert steps(run_copy) == ["40", "60"]
    assert (run_copy / "recipe.json").read_text() == before


def test_a_damaged_step_is_kept_beside_the_new_one(run_copy, monkeypatch):
    """With a damaged recipe, 60's arrays must not be used under 40's."""
    path = run_copy / "checkpoints" / "60" / "recipe" / "metadata"
    path.write_text(path.read_text().replace("relu", "gelu"))
    assert train(make(**SMALL_RUN), run_copy, resume=True) == 0
    assert steps(run_copy) == ["40", "60", "60.aside"]
    assert lipzoo.load(run_copy).step == 60


def test_another_recipe_is_no_damage(run_copy):
    with pytest.raises(UserError, match="--width 8 differs from the 16"):
        train(make(**{**SMALL_RUN, "width": 8}), run_copy, resume=True)
    assert steps(run_copy) == ["40", "60"]


def test_a_run_without_its_recipe_file_is_not_written_over_and_resumes(run_copy):
    (run_copy / "recipe.json").unlink()
    with pytest.raises(UserError, match="already holds a run"):
        train(make(**SMALL_RUN), run_copy, resume=False)
    line = parse(digits_mlp.RECIPE, ["--resume", str(run_copy)])
    assert line.recipe == make(**SMALL_RUN)


def test_a_run_whose_directory_is_gone_is_saved_elsewhere(tiny, tmp_path):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run, 2)
    data = load_digits().batches(batch_size=16, count=100, seed=0)
    checkpoints.save(tiny[1], data, tiny[0], {})
    assert checkpoints.steps() == [0]
    shutil.rmtree(run)
    with pytest.raises(UserError, match=r"step 0 is saved in .*run\.rescued, go on with --resume .*run\.rescued"):
        checkpoints.save(tiny[1], data, tiny[0], {})
    checkpoints.close()
    assert_same(restore(tmp_path / "run.rescued", tiny[1]), tiny[1])
    assert not run.exists()


def test_one_process_at_a_time_writes_to_a_run(run_copy):
    with held(run_copy), pytest.raises(UserError, match="another process is working in"):
        train(make(**SMALL_RUN), run_copy, resume=True)
    with held(run_copy):
        pass


def test_the_first_format_loads_resumes_and_tells_what_it_is(tmp_path):
    run = shutil.copytree(FORMAT1, tmp_path / "run")
    loaded = lipzoo.load(run)
    assert (loaded.step, loaded.sha256[:8]) == (4, "19e3dfc6")
    assert loaded.recipe.model == MLPConfig(width=4)
    line = parse(digits_mlp.RECIPE, ["--resume", str(run), "--steps", "6"])
    assert train(line.recipe, run, resume=True) == 0
    assert steps(run) == ["6"]
    assert json.loads((run / "recipe.json").read_text())["format"] == 2
    gpt = lipzoo.load(FORMAT1.with_name("format1_gpt"))
    assert (gpt.step, gpt.sha256[:8]) == (2, "e48e3930")
    assert isinstance(gpt.recipe.model, GPTConfig)
    assert gpt.recipe.model.relative_bias == 32


def test_the_optimizer_of_the_first_format_is_found_by_name():
    stored = json.loads((FORMAT1.with_name("format1_gpt") / "checkpoints" / "2" / "digests" / "metadata").read_text())
    recipe = lipzoo.load(FORMAT1.with_name("format1_gpt")).recipe
    assert {current_name(key) for key in stored["rest"] if not RETIRED.fullmatch(key)} == set(
        contents.rest_arrays(abstract_state(resolve(recipe)[0]))
    )


def test_a_run_whose_optimizer_and_trust_region_had_clocks_of_their_own_goes_on(tmp_path):
    run = shutil.copytree(FORMAT1.with_name("format2_clocks"), tmp_path / "run")
    line = parse(digits_mlp.RECIPE, ["--resume", str(run), "--steps", "6"])
    assert train(line.recipe, run, resume=True) == 0
    assert steps(run) == ["4", "6"]
    assert not any(
        RETIRED.fullmatch(name) for name in json.loads((run / "checkpoints/6/digests/metadata").read_text())["rest"]
    )


def test_a_checkpoint_of_a_later_version_names_it(tiny, tmp_path):
    recipe, state = tiny
    save_model(tmp_path, 3, state.model, recipe)
    step = tmp_path / "checkpoints" / "3"
    about = json.loads((step / "recipe" / "metadata").read_text())
    about["lipzoo"], about["recipe"]["format"] = "7.1", 9
    (step / "recipe" / "metadata").write_text(json.dumps(about))
    noted = json.loads((step / "digests" / "metadata").read_text())
    (step / "digests" / "metadata").write_text(json.dumps(noted | {"recipe": digests.json_digest(about)}))
    with pytest.raises(UserError, match=r"written by lipzoo 7\.1, is not one that lipzoo .* can read") as error:
        lipzoo.load(tmp_path)
    assert "damaged" not in str(error.value)
