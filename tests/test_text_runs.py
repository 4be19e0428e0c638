"""Runs of a GPT on text: caps hold after every step, runs resume, certify and are refused as those of images."""

import dataclasses
import json
import shutil

import jax
import pytest

import lipzoo
from lipzoo.certify.certificate import Certificate
from lipzoo.cli.run import train
from lipzoo.cli.train import parse
from lipzoo.data import TextConfig
from lipzoo.devices.mesh import batched, make_mesh
from lipzoo.models import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.report.metrics import read_metrics
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import weights
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state
from lipzoo.train.step import make_train_step, step_of
from recipes import shakespeare_gpt
from tests.conftest import svd_norm

SMALL = Recipe(
    name="small_gpt",
    model=GPTConfig(depth=2, width=16, heads=2),
    data=TextConfig(data="synthetic", batch_size=8, seq_len=16),
    optimizer=OptimizerConfig(lr=0.5),
    constraint=ConstraintConfig(sigma_max=1.0),
    training=TrainingConfig(steps=12, log_interval=2, val_interval=12, save_interval=4),
)


@pytest.mark.parametrize(
    ("constraint", "granularity"),
    [
        *(("soft-cap", "head"), ("spectral-normalize", "matrix"), ("stiefel", "head")),
    ],
)
def test_caps_of_every_head_and_row_hold_after_each_step(granularity, constraint):
    recipe = dataclasses.replace(
        SMALL,
        model=dataclasses.replace(SMALL.model, granularity=granularity),
        optimizer=OptimizerConfig(lr=5.0, schedule="constant"),
        constraint=ConstraintConfig(constraint, sigma_max=1.0),
    ).complete()
    recipe.check()
    mesh = make_mesh()
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    for batch in recipe.data.load(0).batches(batch_size=8, count=25, seed=0):
        state, _ = train_step(state, jax.device_put(batch, batched(mesh)))
        for weight in weights(recipe.dressed(state.model)):
            assert svd_norm(weight.array).max() <= weight.cap
    certificate = Certificate.of(recipe.dressed(state.model))
    assert certificate.certified.log_lipschitz <= certificate.a_priori.log_lipschitz
    assert make_train_step(resolve(recipe)[0], mesh)._cache_size() == 1


def test_a_run_on_text_validates_stores_its_tokenizer_resumes_and_certifies(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(SMALL, whole, resume=False) == 0
    assert train(SMALL, parts, resume=False) == 0
    shutil.rmtree(parts / "checkpoints" / "12")
    assert train(SMALL, parts, resume=True) == 0
    first, second = (json.loads((run / "certificate.json").read_text()) for run in (whole, parts))
    assert first["weights_sha256"] == second["weights_sha256"]
    assert 0 < first["published_formula"]["lipschitz"] < first["certified"]["lipschitz"]
    assert first["certified"]["lipschitz"] <= first["a_priori"]["lipschitz"]
    loaded = lipzoo.load(whole)
    assert loaded.recipe.data.alphabet == SMALL.complete().data.alphabet
    assert 0 < read_metrics(whole / "metrics.jsonl")[-1]["val_loss"] < 10


REFUSED = [
    (["--width", "30"], "--width must be divisible by 8"),
    (["--heads", "0"], "--heads must be at least 1"),
    (["--seq-len", "0"], "--seq-len must be at least 1"),
    (["--logit-softcap", "-1"], "--logit-softcap must be at least 0"),
    (["--relative-bias", "9999"], "--relative-bias must lie between 0 and 4,096"),
    (["--norm", "rms", "--epsilon", "0"], "--epsilon must be positive"),
    (["--architecture", "lipsformer", "--norm", "rms"], "--norm is not for --architecture lipsformer"),
    (["--softmax-scale", "-1"], "--softmax-scale must be at least 0"),
    (["--residual-scale", "99"], "--residual-scale must be at most 4, twice the --depth"),
    (["--blocks-mass", "0"], "--blocks-mass must be positive"),
    (["--lr", "100"], "--lr 100 is too high for blocks.q"),
    (["--embedding-cap", "0"], "the cap of embedding must lie between"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_impossible_transformers_are_refused(arguments, message):
    with pytest.raises(UserError) as error:
        parse(shakespeare_gpt.RECIPE, ["--data", "pydoc", *arguments]).recipe.check()
    assert message in str(error.value)


def test_recipes_of_text_survive_json():
    recipe = SMALL.complete()
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
