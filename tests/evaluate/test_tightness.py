"""Gains that are found: equal to the norm where that is known, and never above what is certified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.constraints import SvdCap
from lipzoo.evaluate.tightness import tightness
from lipzoo.models import GPT, MLP, GPTConfig, Linear
from lipzoo.theory.bound import Bound
from lipzoo.theory.space import Tokens
from lipzoo.theory.weight import Weight, exact_norm


def test_of_a_matrix_the_norm_is_found(getkey):
    model = Linear(Weight(jax.random.normal(getkey(), (7, 12)), "w"))
    x = jax.random.uniform(getkey(), (4, 12))
    (row,) = tightness(model, Bound.start(model.takes), x, exact_norm, Certificate.of(model).lipschitz)
    assert row.name == "whole"
    assert row.found == pytest.approx(row.certified, rel=1e-3)
    assert row.found <= row.certified * (1 + 1e-5)


@pytest.mark.parametrize("options", [{"activation": "maxmin"}, {"bias": True, "residual": 0.5, "final_scale": 3.0}])
def test_no_layer_of_an_mlp_gains_more_than_is_certified(options, getkey):
    model = MLP(12, 16, 5, depth=3, zero_init=False, cap=1.5, key=getkey(), **options)
    rows = tightness(
        model,
        Bound.start(model.takes),
        jax.random.uniform(getkey(), (16, 12)),
        exact_norm,
        Certificate.of(model, tighten=20).lipschitz,
    )
    assert [row.name for row in rows] == ["whole", "layers.0", "layers.1", "head"]
    assert all(0 < row.found <= row.certified * (1 + 1e-5) for row in rows)
    assert rows[0].certified / rows[0].found < 4
    assert rows[-1].found == pytest.approx(rows[-1].certified, rel=1e-2)


def test_no_block_of_a_gpt_gains_more_than_is_certified(getkey):
    config = GPTConfig(width=16, heads=2, depth=1, zero_init=False)
    model = GPT(11, config, cap=1.0, key=getkey()).project(SvdCap())
    table = np.asarray(model.embedding.table.array)[..., 0]
    start = Bound.start(Tokens(16), float(np.sqrt((table**2).mean(1)).max()))
    certified = Certificate.of(model).lipschitz
    tokens = jax.random.randint(getkey(), (8, 6), 0, 11)
    rows = tightness(model, start, jnp.asarray(table[tokens]), exact_norm, certified)
    assert [row.name for row in rows] == ["whole", "blocks.0", "head"]
    assert all(0 < row.found <= row.certified * (1 + 1e-5) for row in rows)
