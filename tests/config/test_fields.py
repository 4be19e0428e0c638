"""Numbers that nothing can be computed with, flags that do nothing, and sizes that no machine has."""

import json
import math

import pytest

from lipzoo.cli.train import parse
from lipzoo.data import TextConfig
from lipzoo.models import GPTConfig
from lipzoo.optim import EBCConfig
from lipzoo.optim.ebc.control import ControllerConfig
from lipzoo.recipe import memory
from lipzoo.recipe.recipe import Recipe
from lipzoo.system.errors import UserError
from recipes import digits_mlp, gpt145m, shakespeare_gpt
from tests.recipe.test_recipe import make

NUMBERS = [
    (make(embedding_cap=math.nan), "--embedding-cap must be finite, got nan"),
    (make(embedding_cap=-math.inf), "--embedding-cap must be finite, got -inf"),
    (Recipe(ebc=EBCConfig(target_kl=math.nan)), "--ebc.target-kl must be finite, got nan"),
    (Recipe(ebc=EBCConfig(controller=ControllerConfig(kp=math.inf))), "--ebc.controller.kp must be finite, got inf"),
    (make(sigma_max_overrides=("head=nan", "head=2")), "--sigma-max-overrides: nan is not finite"),
    (make(lr_overrides=("head=1e400", "head=0.1")), "--lr-overrides: 1e400 is not finite"),
    (make(steps=3_000_000_000), "--steps must be at most 2,147,483,647, got 3,000,000,000"),
    (make(batch_size=10**11), "--batch-size must be at most 2,147,483,647"),
    (make(seed=2**32), "--seed must be at most 4,294,967,295, got 4,294,967,296"),
    (make(depth=100_000), "--depth must lie between 1 and 1,024, since every layer is compiled by itself, got 100,000"),
    (Recipe(name="a\0b"), "--name must be printable text"),
    *((Recipe(name=name), "--name is a folder under runs/") for name in ("", "/tmp/x", "a//b", "..", "a/../b", "a/")),
    (make(lr=1e-46), "--lr must be 0 or lie between 7.89e-31 and 1.27e+30, got 1e-46"),
    (make(final_scale=1e300), "--final-scale must be 0 or lie between 7.89e-31 and 1.27e+30, got 1e+300"),
    (make(sigma_max_overrides=("head=1", "head=2")), "--sigma-max-overrides names 'head' more than once"),
    (make(depth=0), "--depth must lie between 1 and 1,024, got 0"),
]


@pytest.mark.parametrize(("recipe", "message"), NUMBERS, ids=[m for _, m in NUMBERS])
def test_all_numbers_are_checked_in_use_or_not(recipe, message):
    with pytest.raises(UserError) as error:
        recipe.check()
    assert str(error.value).startswith(message)


def test_stored_numbers_are_checked_too():
    value = json.loads(json.dumps(make(embedding_cap=math.nan).to_json()))
    with pytest.raises(UserError, match="--embedding-cap must be finite, got nan"):
        Recipe.from_json(value)


SIZES = [
    (make(batch_size=2_000_000_000), "a batch would take 134.1 GiB of memory, and there are 16.0: lower --batch-size"),
    (make(width=10**6), "the weights and the optimizer would take 11,176.7 GiB"),
    (Recipe(model=GPTConfig(depth=2 * 10**9), data=TextConfig()), "the weights and the optimizer would take"),
    (Recipe(model=GPTConfig(), data=TextConfig(seq_len=2 * 10**9)), "a batch would take"),
    (Recipe(model=GPTConfig(), data=TextConfig(seq_len=10**6, batch_size=1)), "a step would take"),
    (Recipe(model=GPTConfig(), data=TextConfig(batch_size=2_000_000)), "a step would take"),
]


@pytest.mark.parametrize(("recipe", "message"), SIZES, ids=[m for _, m in SIZES])
def test_what_no_memory_holds_is_refused_before_it_is_tried(recipe, message, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 16 * 2**30)
    with pytest.raises(UserError) as error:
        recipe.check()
    assert str(error.value).startswith(message)


def test_ready_made_recipes_fit_where_they_are_meant_to(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 16 * 2**30)
    for recipe in (digits_mlp.RECIPE, shakespeare_gpt.RECIPE, *gpt145m.VARIANTS.values()):
        recipe.check()


def test_a_container_has_the_memory_that_it_is_given(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "nowhere"), str(limit)))
    assert memory.host_bytes() == 2**20
    limit.write_text("max\n")
    assert memory.host_bytes() > 2**28


UNUSED = [
    (digits_mlp.RECIPE, ["--embedding-cap", "2"], "--embedding-cap has no effect on a model without an embedding"),
    (digits_mlp.RECIPE, ["--ebc.guard.floor", "0.2"], "--ebc.guard.floor has no effect without --ebc.enable"),
    (
        digits_mlp.RECIPE,
        ["--ebc.enable", "--ebc.guard.floor", "0.2"],
        "--ebc.guard.floor has no effect without --ebc.guard.enable",
    ),
    (digits_mlp.RECIPE, ["--depth", "1", "--width", "8"], "--width has no effect on an MLP of --depth 1"),
    (digits_mlp.RECIPE, ["--constraint", "none", "--sigma-max", "9"], "--sigma-max has no effect where no"),
    (digits_mlp.RECIPE, ["--spectral-wd", "0.5"], "--spectral-wd has no effect without --constraint spectral"),
    (digits_mlp.RECIPE, ["--optimizer", "adamw", "--polynomial", "polar-express"], "--polynomial has no effect"),
    (shakespeare_gpt.RECIPE, ["--epsilon", "0.1"], "--epsilon has no effect without normalization"),
    (digits_mlp.RECIPE, ["--cooldown", "0.2"], "--cooldown has no effect without --schedule trapezoid"),
    (digits_mlp.RECIPE, ["--cooldown-floor", "0"], "--cooldown-floor has no effect without --schedule trapezoid"),
    (digits_mlp.RECIPE, ["--peak-at", "0.2"], "--peak-at has no effect without --schedule triangular"),
    (digits_mlp.RECIPE, ["--schedule", "triangular", "--warmup-steps", "9"], "--warmup-steps has no effect beside"),
    (digits_mlp.RECIPE, ["--rand-augment-size", "9"], "--rand-augment-size has no effect without --rand-augment"),
]


@pytest.mark.parametrize(("recipe", "flags", "message"), UNUSED, ids=[" ".join(f) for _, f, _ in UNUSED])
def test_flags_that_do_nothing_are_refused(recipe, flags, message):
    with pytest.raises(UserError) as error:
        parse(recipe, flags)
    assert str(error.value).startswith(message)


def test_flags_that_do_something_are_not():
    parse(digits_mlp.RECIPE, ["--constraint-overrides", "head=spectral-weight-decay", "--spectral-wd", "0.5"])
    parse(digits_mlp.RECIPE, ["--constraint", "none", "--constraint-overrides", "head=svd-cap", "--sigma-max", "5"])
    parse(shakespeare_gpt.RECIPE, ["--constraint", "none", "--sigma-max-overrides"])
    parse(shakespeare_gpt.RECIPE, ["--constraint", "none"])  # What the recipe itself says may be idle.
    parse(shakespeare_gpt.RECIPE, ["--schedule", "triangular", "--peak-at", "0.2"])
    parse(digits_mlp.RECIPE, ["--schedule", "trapezoid", "--cooldown", "0.2", "--cooldown-floor", "0"])
    parse(digits_mlp.RECIPE, ["--rand-augment", "2", "--rand-augment-size", "9"])


def test_positions_are_held_by_no_constraint():
    for flag, pair in (("--constraint-overrides", "=svd-cap"), ("--sigma-max-overrides", "=2")):
        recipe = parse(shakespeare_gpt.RECIPE, [flag, f"blocks.position{pair}"]).recipe
        with pytest.raises(UserError, match=f"{flag}: no layer that it acts on is called 'blocks.position'"):
            recipe.check()
    parse(shakespeare_gpt.RECIPE, ["--lr-overrides", "blocks.position=0.1"]).recipe.check()


def test_a_recipe_is_checked_without_its_data(monkeypatch, tmp_path):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path / "nowhere"))
    shakespeare_gpt.RECIPE.check()
    with pytest.raises(UserError, match="--width must be divisible by 6"):
        parse(shakespeare_gpt.RECIPE, ["--heads", "3"]).recipe.check()
    assert not (tmp_path / "nowhere").exists()
