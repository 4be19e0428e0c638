"""Recipes: what is refused before anything is compiled, overrides, shares, and their JSON."""

import dataclasses
import json
import math

import jax
import pytest

from lipzoo.cli.train import parse
from lipzoo.data import DataConfig, TextConfig, TokensConfig
from lipzoo.models import GPTConfig, MLPConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig
from lipzoo.system.errors import UserError
from lipzoo.theory.geometry import COLUMN
from lipzoo.theory.weight import weights
from recipes import cifar_mlp, digits_mlp
from tests.conftest import svd_norm

PARTS = {
    "model": MLPConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "constraint": ConstraintConfig,
    "training": TrainingConfig,
}


def make(**options):
    """A recipe from options of any of its parts, whose field names are unique."""
    parts = {}
    for part, config in PARTS.items():
        names = {field.name for field in dataclasses.fields(config)}
        parts[part] = config(**{name: options.pop(name) for name in list(options) if name in names})
    assert not options
    return Recipe(**parts)


def test_field_names_are_unique_over_the_parts():
    names = [field.name for config in PARTS.values() for field in dataclasses.fields(config)]
    assert len(set(names)) == len(names)


REFUSED = [
    ({"sigma_max": 0.0}, "--sigma-max"),
    ({"sigma_max": -1.0}, "--sigma-max"),
    ({"sigma_max": math.inf}, "--sigma-max"),
    ({"sigma_max": math.nan}, "--sigma-max"),
    ({"lr": -0.1}, "--lr"),
    ({"lr": math.inf}, "--lr"),
    ({"lr": 1000.0}, "--lr 1000 is too high for layers.0: soft-cap absorbs updates of norm up to"),
    ({"lr": 20.0, "constraint": "hard-cap-poly"}, "--lr 20 is too high for layers.0: hard-cap-poly diverges"),
    ({"constraint": "hard-cap-poly", "optimizer": "adamw"}, "use --optimizer muon"),
    ({"sigma_max": 1e-21}, "--sigma-max"),
    ({"polynomial": "polar-express", "msign_dtype": "bfloat16"}, "diverges in bfloat16"),
    ({"embedding_cap": 0.0, "beta2": 0.99999999}, "--beta2"),
    ({"embed_inflation": 0.5}, "--embed-inflation"),
    ({"random_shift": 9}, "--random-shift"),
    ({"cutout": 9}, "--cutout 9 is more than the 8×8 pixels of digits"),
    ({"cutout": 33, "data": "cifar100"}, "--cutout 33 is more than the 32×32 pixels of cifar100"),
    ({"cutout": -1}, "--cutout"),
    ({"rand_augment": 9}, "--rand-augment"),
    ({"rand_augment_size": 11}, "--rand-augment-size"),
    ({"peak_at": 1.5}, "--peak-at"),
    ({"constraint": "weight-decay"}, "--weight-decay above 0"),
    ({"weight_decay": 50.0}, "would flip the sign of layers.0"),
    ({"weight_decay": math.nan}, "--weight-decay"),
    ({"spectral_wd": 1.5}, "--spectral-wd"),
    ({"constraint_overrides": ("heat=none",)}, "heat"),
    ({"constraint_overrides": ("head=softcap",)}, "'softcap'"),
    ({"constraint_overrides": ("head",)}, "LAYER="),
    ({"sigma_max_overrides": ("head=big",)}, "'big' is not a number"),
    ({"sigma_max_overrides": ("head=-2",)}, "the cap of head must lie between"),
    ({"depth": 0}, "--depth"),
    ({"width": -3}, "--width"),
    ({"width": 5, "activation": "maxmin"}, "--activation maxmin"),
    ({"residual": 2.0}, "--residual"),
    ({"final_scale": 0.0}, "--final-scale"),
    ({"batch_size": 0}, "--batch-size"),
    ({"batch_size": 100, "mesh": "8"}, "--batch-size 100 is not divisible"),
    ({"batch_size": 100, "accum_steps": 3}, "--accum-steps 3"),
    ({"randomize_labels": 1.1}, "--randomize-labels"),
    ({"steps": 0}, "--steps"),
    ({"keep": 0}, "--keep"),
    ({"save_interval": 0}, "--save-interval"),
    ({"temperature": 0.0}, "--temperature"),
    ({"temperature": math.inf}, "--temperature"),
    ({"seed": -1}, "--seed"),
    ({"warmup_steps": 5000}, "--warmup-steps"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(list(o.items())) for o, _ in REFUSED])
def test_what_cannot_keep_its_promise_is_refused_in_one_sentence(options, message):
    with pytest.raises(UserError) as error:
        make(**options).check()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", [digits_mlp.RECIPE, cifar_mlp.RECIPE])
def test_ready_made_recipes_are_admitted_and_survive_json(recipe):
    recipe.check()
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


DATA = [
    DataConfig("cifar10", random_shift=2),
    DataConfig("cifar100", cutout=8, rand_augment=2, rand_augment_size=9),
    TextConfig(alphabet="abc", batch_size=3),
    TextConfig("shakespeare"),
    TokensConfig(),
    TokensConfig("shakespeare", seq_len=7),
    TokensConfig("digits", batch_size=512),
]


@pytest.mark.parametrize("data", DATA, ids=repr)
def test_stored_data_come_back_as_what_they_were(data):
    recipe = Recipe(model=GPTConfig(), data=data)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))).data == data


def test_token_shards_are_set_by_flags():
    recipe = Recipe(model=GPTConfig(width=16, heads=2), data=TokensConfig())
    flags = ["--data", "wikipedia_gpt2", "--batch-size", "16", "--seq-len", "64", "--train-shards", "1"]
    line = parse(recipe, [*flags, "--val-tokens", "1000", "--sigma-max", "1"])
    assert line.recipe.data == TokensConfig("wikipedia_gpt2", 16, 64, 1, 1000)
    line.recipe.check()
    with pytest.raises(UserError, match="--train-shards must be at least 1"):
        parse(recipe, ["--train-shards", "0"]).recipe.check()


def test_json_is_checked_field_by_field():
    value = make().to_json()
    value["optimizer"]["lr"] = "fast"
    with pytest.raises(UserError, match=r"written by lipzoo 9, is not one that lipzoo .* can read: optimizer\.lr"):
        Recipe.from_json(value, "9")
    for damage, message in (
        (lambda v: v["model"].update(residuals=0.5), r"other settings: model\.residuals"),
        (lambda v: v["model"].update(kind="tree"), "kind 'tree'"),
        (lambda v: v.update(format=99), "its format is 99"),
        (lambda v: v.update(format=[1]), r"its format is \[1\]"),
        (lambda v: v.clear(), "lacks one of model"),
    ):
        value = make().to_json()
        damage(value)
        with pytest.raises(UserError, match=message):
            Recipe.from_json(value)


def test_a_setting_that_is_not_stored_has_its_default():
    value = make(residual=0.0, seed=3).to_json()
    value["model"].pop("residual")
    value.pop("ebc")
    assert Recipe.from_json(value) == make(residual=0.0, seed=3)


def test_overrides_choose_cap_and_constraint_by_pattern():
    recipe = make(
        constraint="soft-cap",
        constraint_overrides=("layers.*=svd-cap", "head=none"),
        sigma_max_overrides=("layers.1=5", "head=7"),
    )
    recipe.check()
    caps = {weight.name: weight.cap for weight in weights(recipe.abstract_model())}
    assert caps == {"layers.0": 3.0, "layers.1": 5.0, "head": math.inf}
    kinds = [type(recipe.constraint.of(weight)).__name__ for weight in weights(recipe.abstract_model())]
    assert kinds == ["SvdCap", "SvdCap", "Unconstrained"]


def test_biases_are_held_by_normalization_or_by_nothing():
    held = make(bias=True, constraint="stiefel")
    free = make(bias=True, constraint="spectral-weight-decay")
    for recipe, kind, cap in [(held, "SpectralNormalize", 3.0), (free, "Unconstrained", math.inf)]:
        biases = [w for w in weights(recipe.abstract_model()) if w.geometry == COLUMN]
        assert len(biases) == 3
        assert {type(recipe.constraint.of(w)).__name__ for w in biases} == {kind}
        assert {w.cap for w in biases} == {cap}


@pytest.mark.parametrize("sigma_max", [0.3, 2.0])
def test_weights_start_under_their_caps(sigma_max):
    model = make(sigma_max=sigma_max, zero_init=False, width=24).build_model(jax.random.key(0))
    for weight in weights(model):
        assert svd_norm(weight.array) <= weight.cap == sigma_max
        assert svd_norm(weight.array) == pytest.approx(min(1, sigma_max), rel=1e-4)
