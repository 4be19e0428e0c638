"""Ranges of numbers, in words and as they act."""

import dataclasses
import inspect

import pytest

from lipzoo.config.fields import field_refusal
from lipzoo.config.ranges import Range, range_of
from lipzoo.recipe.recipe import Recipe
from recipes import digits_mlp, gpt145m, shakespeare_gpt

CASES = [
    (Range(1), "at least 1", [1, 2**40], [0, -1]),
    (Range(0, open_low=True), "positive", [1e-9], [0, -1e-9]),
    (Range(0, 1), "between 0 and 1", [0, 1, 0.5], [-0.1, 1.1]),
    (Range(0, 4096), "between 0 and 4,096", [4096], [4097]),
    (Range(0, 1, open_high=True), "at least 0 and below 1", [0, 0.9999], [1]),
    (Range(0, 1e6, open_low=True), "positive and at most 1,000,000", [1e6], [0]),
    (Range(2, open_low=True), "above 2", [2.1], [2]),
    (Range(high=3), "at most 3", [-5, 3], [4]),
]


@pytest.mark.parametrize(("within", "words", "inside", "outside"), CASES, ids=[words for _, words, *_ in CASES])
def test_a_range_in_words(within, words, inside, outside):
    assert str(within) == words
    assert all(within.refusal("--x", value) is None for value in inside)
    for value in outside:
        assert words in within.refusal("--x", value)


def test_a_refusal_says_why_above_alone():
    within = Range(0, 16, why="since each is a pass")
    assert within.refusal("--refine", 17) == "--refine must lie between 0 and 16, since each is a pass, got 17"
    assert within.refusal("--refine", -1) == "--refine must lie between 0 and 16, got -1"
    assert Range(0, 1).refusal("--x", 2.0) == "--x must lie between 0 and 1, got 2"


def _parts(config):
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts(value)


@pytest.mark.parametrize("recipe", [digits_mlp.RECIPE, shakespeare_gpt.RECIPE, *gpt145m.VARIANTS.values()])
def test_every_range_of_a_recipe_acts(recipe: Recipe):
    tried = 0
    for part in _parts(recipe):
        for name, kind in inspect.get_annotations(type(part)).items():
            for outside in (within.low - 1, within.high + 1) if (within := range_of(kind)) else ():
                if abs(outside) < 2**31:
                    value = type(getattr(part, name))(outside)
                    refusal = field_refusal(dataclasses.replace(part, **{name: value}))
                    assert f"--{name.replace('_', '-')} must" in str(refusal)
                    tried += 1
    assert tried > 30
