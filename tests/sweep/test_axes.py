"""Grids and samples: which settings words make, of which types, and what is refused in a sentence."""

import dataclasses
import json

import numpy as np
import pytest

from lipzoo.cli.train import parse
from lipzoo.recipe.recipe import Recipe
from lipzoo.sweep.axes import axes_of, grid, samples, split_words
from lipzoo.sweep.runs import Base, base_of, key_of, runs_of, settings_of, share
from lipzoo.sweep.settings import fields_of, flags_of, value_of, with_setting
from lipzoo.system.errors import UserError
from recipes.cifar_mlp import RECIPE as CIFAR
from recipes.digits_mlp import RECIPE as DIGITS
from recipes.shakespeare_gpt import RECIPE as SHAKESPEARE

BASE = Base(DIGITS, "python -m recipes.digits_mlp")


def made(line: str, recipe: Recipe = DIGITS):
    return grid(axes_of(recipe, split_words(line.split(), [])[1]))


def test_the_grid_is_every_combination_in_the_order_of_the_words():
    found = made("--lr 0.1 0.2 --seed 0 1 2")
    assert [(s["lr"], s["seed"]) for s in found] == [(lr, seed) for lr in (0.1, 0.2) for seed in (0, 1, 2)]


def refused(line):
    """Raises what the line, or its first run, is refused with."""
    (run, *_) = runs_of(BASE, made(line))
    if run.refusal:
        raise UserError(run.refusal)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--lr log:0.01:1:3", (0.01, 0.1, 1.0)),
        ("--lr lin:0:1:3", (0.0, 0.5, 1.0)),
        ("--lr 5 log:0.01:1:2 5", (5.0, 0.01, 1.0)),
        ("--width log:4:64:3", (4, 16, 64)),
        ("--constraint soft-cap none", ("soft-cap", "none")),
        ("--seal", (True,)),
        ("--no-seal", (False,)),
        ("--seal true false", (True, False)),
        ("--ebc.target-kl=0.1 0.2", (0.1, 0.2)),
        ("--ebc.no-enable", (False,)),
        ("--no_seal", (False,)),
        ("--sigma-max-overrides head=1,layers.0=2 head=3", (("head=1", "layers.0=2"), ("head=3",))),
    ],
)
def test_words_become_values_of_the_fields_type(line, values):
    (axis,) = axes_of(DIGITS, split_words(line.split(), [])[1])
    assert axis.values == values
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--lrr 1", "do you mean --lr"),
        ("--nothing-like-it 1", "it has .*lr"),
        ("--lr", "needs at least one value"),
        ("--lr x", "no value for it"),
        ("--width 1.5", "no value for it"),
        ("--lr log:0:1:3", "above 0"),
        ("--lr log:1:0.1:3", "LOW below HIGH"),
        ("--lr log:1:2:1", "at least 2"),
        ("--lr log:1", "must be log:LOW:HIGH"),
        ("--lr log:a:b:3", "must be log:LOW:HIGH"),
        ("--lr log:1:2", "--samples"),
        ("--lr 1 log:1:2", "stands alone"),
        ("--lr nan", "no value|finite"),
        ("--constraint nonsense", "soft-cap"),
        ("--seal maybe", "no value for it"),
        ("--val-interval 5", "says nothing to a sweep"),
        ("--mesh 2", "says nothing to a sweep"),
        ("--lr 0.1 --lr 0.2", "comes twice"),
        ("--seal --no-seal", "comes twice"),
        ("0.1 --lr 0.2", "belongs to no flag"),
        ("--no-lr", "no field|needs at least"),
        ("--steps log:1e-300:1e300:3", "float32"),
        ("--steps lin:-1e308:1e308:3", "float32"),
    ],
)
def test_what_says_nothing_is_refused(line, says):
    with pytest.raises(UserError, match=says):
        refused(line)


@pytest.mark.parametrize("sampler", ["sobol", "random"])
def test_samples_lie_in_their_ranges_with_every_seed_and_come_again(sampler):
    words = split_words(
        ["--lr", "log:0.01:1", "--width", "lin:8:64", "--constraint", "none", "soft-cap", "--seed", "0", "1"], []
    )[1]
    axes = axes_of(DIGITS, words)
    found = samples(axes, 40, sampler, 3)
    assert found == samples(axes, 40, sampler, 3) != samples(axes, 40, sampler, 4)
    assert len(found) == 80
    assert [s["seed"] for s in found] == [0, 1] * 40
    assert all(0.01 <= s["lr"] <= 1 and 8 <= s["width"] <= 64 and isinstance(s["width"], int) for s in found)
    assert {s["constraint"] for s in found} == {"none", "soft-cap"}
    logs = np.log10([s["lr"] for s in found])
    assert abs(logs.mean() + 1) < 0.35  # Even in the logarithm.


def test_sobol_samples_fill_halves_evenly():
    """Of 2^k points of the sequence, exactly half lie in each half of each range."""
    axes = axes_of(DIGITS, {"lr": ["lin:0:1"], "sigma_max": ["lin:1:2"]})
    found = samples(axes, 64, "sobol", 0)
    for name, middle in (("lr", 0.5), ("sigma_max", 1.5)):
        assert sum(setting[name] < middle for setting in found) == 32


@pytest.mark.parametrize("recipe", [DIGITS, CIFAR, SHAKESPEARE], ids=lambda recipe: recipe.name)
def test_the_command_of_a_run_is_parsed_to_its_recipe(recipe):
    """By the command line of recipes, which shares no code with that of sweeps."""
    lines = "--lr 0.05 0.1 --seed 0 3 --no-seal --steps 7 --sigma-max-overrides head=2 --ebc.enable --ebc.target-kl 0.2"
    for run in runs_of(Base(recipe, "x"), made(lines, recipe)):
        assert parse(recipe, run.command.split()[1:]).recipe == run.recipe


def test_fields_that_do_nothing_are_left_out_and_runs_come_once():
    found = runs_of(BASE, made("--constraint none soft-cap --sigma-max 1 2 3"))
    assert [(run.setting["constraint"], run.setting["sigma_max"]) for run in found] == [
        ("none", None),
        *(("soft-cap", cap) for cap in (1.0, 2.0, 3.0)),
    ]
    assert "sigma-max" not in found[0].command
    assert len({run.key for run in found}) == 4


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("--lipschitz 5 --sigma-max 1 2 4", 1),
        ("--max-step-kl 0.05 --fit-lr --lr 0.1 0.2", 1),
        ("--constraint soft-cap weight-decay --weight-decay 0.3 --sigma-max 1 2 4", 4),
        ("--embedding-adam true false --beta2 0.9 0.95", 1),
    ],
)
def test_what_is_trained_in_the_same_way_is_one_run(line, count):
    found = runs_of(BASE, made(line))
    assert len(found) == len({json.dumps(run.recipe.to_json()) for run in found}) == count
    for run in found:
        parse(DIGITS, run.command.split()[3:])


def test_numbers_are_written_whole():
    (run,) = runs_of(BASE, made("--lr 0.12345678912345"))
    assert parse(DIGITS, run.command.split()[3:]).recipe == run.recipe


def test_what_cannot_be_run_says_why_and_the_rest_can():
    found = runs_of(BASE, made("--optimizer muon adamw --constraint hard-cap --momentum-warmup 0 5"))
    assert [run.refusal for run in found] == [None, None, None, "--momentum-warmup is for --optimizer muon"]


def test_keys_are_those_of_recipes():
    one, two = runs_of(BASE, made("--lr 0.1 0.2"))
    assert one.key == key_of(DIGITS) != two.key
    assert key_of(Recipe.from_json(json.loads(json.dumps(two.recipe.to_json())))) == two.key


def test_every_field_can_be_set_and_read():
    for name, field in fields_of(SHAKESPEARE).items():
        value = value_of(SHAKESPEARE, name)
        if name != "name" and field.plain is not str:
            assert value_of(with_setting(SHAKESPEARE, {name: value}), name) == value if _settable(name) else True


def _settable(name: str) -> bool:
    try:
        axes_of(SHAKESPEARE, {name: ["x"]})
    except UserError as error:
        return "says nothing" not in str(error)
    return True


def test_settings_of_a_file():
    given = [{"lr": 0.5, "sigma-max-overrides": ["head=2"]}, {"seed": 3}]
    assert settings_of(given, DIGITS) == [{"lr": 0.5, "sigma_max_overrides": ("head=2",)}, {"seed": 3}]
    for wrong, says in (
        ({}, "a list of settings"),
        ([], "a list"),
        ([{"lrr": 1}], "--lr"),
        ([{"lr": "x"}], "no value"),
        ([{"lr": True}], "no value"),
        ([{"random-shift": 0, "random_shift": 1}], "twice"),
    ):
        with pytest.raises(UserError, match=says):
            settings_of(wrong, DIGITS)


def test_shares_are_all_runs_each_once():
    found = runs_of(BASE, made("--lr log:0.01:1:7"))
    parts = [run for part in (1, 2, 3) for run in share(found, f"{part}/3")]
    assert sorted(run.key for run in parts) == sorted(run.key for run in found)
    for wrong in ("0/3", "4/3", "1", "x/2", "1/0", "-1/2"):
        with pytest.raises(UserError, match="I/N"):
            share(found, wrong)


def test_flags_of_a_setting():
    setting = {
        "lr": 0.1,
        "seal": False,
        "ebc.enable": True,
        "ebc.center_logits": False,
        "sigma_max_overrides": ("a=1",),
    }
    words = "--lr 0.1 --no-seal --ebc.enable --ebc.no-center-logits --sigma-max-overrides a=1"
    assert " ".join(flags_of(setting)) == words


def test_bases_are_recipes_and_their_variants():
    assert base_of("digits_mlp", None) == BASE
    assert base_of("gpt145m", "baseline").command == "python -m recipes.gpt145m --variant baseline"
    for name, variant, says in (
        ("digits_mlp", "x", "digits_mlp has none"),
        ("gpt145m", "x", "choose from sigma1"),
        ("ebc_ablation", None, "no RECIPE that can be swept"),
        ("nothing", None, "choose from .*digits_mlp"),
        ("no.such.module", None, "there is no recipe"),
        ("./recipes/digits_mlp.py", None, "there is no recipe"),
        (".foo", None, "there is no recipe"),
    ):
        with pytest.raises(UserError, match=says):
            base_of(name, variant)


def test_a_recipe_is_not_changed_by_what_is_swept():
    before = dataclasses.asdict(DIGITS)
    runs_of(BASE, made("--lr 0.3 --seed 4"))
    assert dataclasses.asdict(DIGITS) == before
