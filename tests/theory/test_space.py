"""Bounds know what they speak of: what once gave a wrong certificate is refused, or right."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import lipzoo
from lipzoo.certify.certificate import Certificate
from lipzoo.models import (
    GELU,
    GPT,
    MLP,
    AbstractModule,
    Affine,
    ConvexResidual,
    Embedding,
    Flatten,
    GPTConfig,
    GroupSort,
    Linear,
    PerToken,
    ReLU,
    Residual,
    RMSNorm,
    Scale,
    Sequential,
    SquaredReLU,
    Stack,
)
from lipzoo.models.lipsformer import WeightedResidual
from lipzoo.theory.geometry import COLUMN, ENTRIES, ROWS
from lipzoo.theory.space import SpaceError, Symbols, Tokens, Vector, example_shape
from lipzoo.theory.weight import Weight
from tests.conftest import svd_norm

EYE = Linear(Weight(np.eye(4, dtype=np.float32), "w"))
TRIPLE = Linear(Weight(3 * np.eye(4, dtype=np.float32), "w"))


def linear(out_size, in_size, name="w", scale=1.0):
    rng = np.random.default_rng(out_size + in_size)
    return Linear(Weight(jnp.asarray(scale * rng.normal(size=(out_size, in_size)), jnp.float32), name))


def gpt(seed=0, **options):
    options = {"width": 16, "depth": 2, "heads": 2, "zero_init": False, **options}
    return GPT(11, GPTConfig(**options), key=jax.random.key(seed))


class HeadFirst(AbstractModule):
    """Its fields stand in another order than they are applied in."""

    head: Linear
    body: Linear

    def __call__(self, x):
        return self.head(self.body(x))

    def bound(self, incoming, measure):
        return self.head.bound(self.body.bound(incoming, measure), measure)


class Broadcasting(AbstractModule):
    """A residual whose branch is repeated to fit, with the bound that one would write down."""

    branch: Linear

    def __call__(self, x):
        return x + self.branch(x)

    def bound(self, incoming, measure):
        return self.branch.bound(incoming, measure)


def test_a_gpt_inside_others_keeps_its_own_domain():
    """Its embedding is smaller than 1, and so is the ball of tokens that the bound holds in."""
    model = gpt()
    small = eqx.tree_at(lambda m: m.embedding.table.array, model, 0.125 * model.embedding.table.array)
    inside = Certificate.of(Sequential([small, Scale(2.0)]))
    assert inside.lipschitz == pytest.approx(2 * Certificate.of(small).lipschitz, rel=1e-9)
    assert "the largest row of the embedding, 0.1249" in inside.statement
    assert "embedded tokens" in inside.statement
    assert inside.certified.domain.space == Tokens(16)
    assert inside.certified.space == Tokens(11)


def test_the_pixel_constant_of_a_module_does_not_depend_on_the_order_of_its_fields():
    model = HeadFirst(linear(3, 8, "head"), linear(8, 40, "body"))
    product = np.asarray(model.head.weight.array, np.float64) @ np.asarray(model.body.weight.array, np.float64)
    certificate = Certificate.of(model, space=Vector((40,)))
    assert np.linalg.norm(product, 2) <= certificate.lipschitz * certificate.l2_factor
    norms = [np.linalg.norm(np.asarray(w.weight.array, np.float64), 2) for w in (model.head, model.body)]
    assert certificate.lipschitz * certificate.l2_factor == pytest.approx(np.prod(norms))
    with pytest.raises(ValueError, match="HeadFirst does not say what it takes: give space="):
        Certificate.of(model)


@pytest.mark.parametrize(
    ("model", "space", "sentence"),
    [
        (Residual(linear(1, 8)), None, "8 entries is not one vector of 1 entries"),
        (ConvexResidual(linear(1, 8), 0.5), None, "8 entries is not one vector of 1 entries"),
        (Broadcasting(linear(1, 8)), Vector((8,)), r"gives shape \(8,\) where its bound speaks of one vector of 1"),
        (Sequential([Flatten(), PerToken(SquaredReLU(1)), linear(4, 8)]), None, "Flatten takes one vector"),
        (Sequential([Flatten(), PerToken(SquaredReLU(1)), linear(4, 8)]), Vector((8,)), "PerToken takes a sequence"),
        (Sequential([PerToken(linear(4, 8)), Flatten()]), None, "Flatten takes one vector"),
        (Sequential([PerToken(linear(4, 8)), linear(4, 4, "b")]), None, "a sequence of tokens .* put it into PerToken"),
        (Sequential([linear(4, 8), linear(4, 5, "b")]), None, "b takes one vector of 5 entries, but was given one"),
        (linear(4, 8), Vector((2, 4)), "put Flatten before it"),
        (linear(4, 8), Tokens(8), "put it into PerToken"),
        (PerToken(linear(4, 8)), Tokens(7), "w takes one vector of 8 entries"),
        (Sequential([ReLU(), gpt()]), None, "has no norm: embed it first"),
        (Sequential([gpt(), gpt(1)]), None, "unique names"),
        (gpt(), Symbols(12), "embedding takes a sequence of whole numbers below 11"),
        (Sequential([linear(9, 8), GroupSort()]), None, "groups of 2 do not divide"),
        (Sequential([linear(9, 8), SquaredReLU(8)]), None, "SquaredReLU takes one vector of 8 entries"),
        (Stack(PerToken(Linear(Weight(jnp.ones((2, 4, 8)), "w")))), None, "a block of a stack was given"),
    ],
)
def test_what_does_not_fit_has_no_certificate(model, space, sentence):
    with pytest.raises(ValueError, match=sentence):
        Certificate.of(model, space=space)


def test_a_residual_does_not_repeat_its_branch_when_it_runs():
    with pytest.raises(ValueError, match="the identity beside a branch takes one example of shape"):
        Residual(linear(1, 8))(jnp.ones(8))


def test_every_block_that_runs_is_counted():
    arrays = jnp.stack([2.0 * jnp.eye(4), 3.0 * jnp.eye(4), 5.0 * jnp.eye(4)])
    stack = Stack(PerToken(Linear(Weight(arrays, "w"))))
    assert Certificate.of(stack).lipschitz == pytest.approx(30)
    np.testing.assert_allclose(stack(jnp.ones((2, 4))), 30)
    with pytest.raises(ValueError, match="one leading axis"):
        Stack(Sequential([PerToken(Linear(Weight(jnp.ones((n, 4, 4)), str(n)))) for n in (2, 3)]))


HIDDEN = np.full((8, 8), 3.0, np.float32)


class Twice(AbstractModule):
    """Two matrices of one name and shape, of which one stands where no table would look."""

    first: Linear

    def __call__(self, x):
        return HIDDEN @ self.first(x)

    def bound(self, incoming, measure):
        return Linear(Weight(HIDDEN, "w")).bound(self.first.bound(incoming, measure), measure)


def test_weights_are_known_by_where_they_lie_not_by_name():
    """The rows are what was measured, whether the model lists it or not."""
    first = linear(8, 8)
    certificate = Certificate.of(Twice(first), space=Vector((8,)))
    assert certificate.lipschitz == pytest.approx(svd_norm(first.weight.array) * 24)
    assert [row.norm for row in certificate.rows] == pytest.approx([svd_norm(first.weight.array), 24])


def test_the_norm_of_a_gpt_is_in_the_table():
    """A normalization with learned gains in the place of `norm` has rows of its own."""
    model = gpt()
    gained = eqx.tree_at(lambda m: m.norm, model, PerToken(linear(16, 16, "norm")))
    assert "norm" in [row.name for row in Certificate.of(gained).rows]
    named = eqx.tree_at(lambda m: m.norm, model, PerToken(linear(16, 16, "head")))
    with pytest.raises(ValueError, match="unique names"):
        Certificate.of(named)


def test_the_table_has_one_row_for_each_weight_of_a_gpt():
    for granularity in ("head", "matrix"):
        names = [row.name for row in Certificate.of(gpt(granularity=granularity)).rows]
        assert len(names) == len(set(names)) == 2 + 6 * 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Certificate.of(eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))), r"not MLP: write lipzoo\.models\.MLP"),
        (lambda: Certificate.of(jnp.ones(3)), "takes modules that know their bound"),
        (lambda: Linear(64, 32), r"takes a Weight, but was given 64: write Linear\(Weight\(array"),
        (lambda: Sequential([linear(4, 4), jax.nn.relu]), r"not relu: write lipzoo\.models\.ReLU\(\)"),
        (lambda: PerToken(jnp.tanh), r"write lipzoo\.models\.Tanh\(\)"),
        (lambda: Residual(eqx.nn.Linear(4, 4, key=jax.random.key(0))), r"lipzoo\.models\.Linear\(Weight"),
        (lambda: Residual(lambda x: x), "AbstractModule, subclassed with __call__ and bound"),
        (lambda: MLP(4, 0, 4, key=jax.random.key(0)), "sizes and a depth of at least 1"),
        (lambda: GPT(11, GPTConfig(width=0), key=jax.random.key(0)), "no such GPT: --width"),
        (lambda: Stack(PerToken(Linear(Weight(jnp.ones((2, 4, 4)), "w"))), 2), "remat must be one of"),
        (lambda: MLP(4, 4, 4, activation="Relu", key=jax.random.key(0)), "--activation must be one of relu"),
        (lambda: MLP(4, 4, 4, residual=-0.5, key=jax.random.key(0)), "--residual must lie between 0 and 1"),
        (lambda: MLP(4, 4, 4, cap=np.nan, key=jax.random.key(0)), "a cap must be positive"),
        (lambda: GPT(4, GPTConfig(norm="rmsnorm"), key=jax.random.key(0)), "--norm must be one of none, rms, layer"),
        (lambda: EYE.project("svd-cap"), "project takes a constraint, such as"),
        (lambda: Sequential([ReLU]), r"ReLU is a class of them: write ReLU\(\)"),
        (lambda: GPT(0, GPTConfig(), key=jax.random.key(0)), "a vocabulary of at least 1"),
        (lambda: Certificate.of(Linear(Weight(jnp.ones((4, 0)), "w"))), "a matrix without entries has no norm"),
        (lambda: MLP(4, 4, 4, key=jax.random.key(0))(jnp.ones((5, 4))), "for a batch, jax.vmap the model"),
        (lambda: gpt()(jnp.ones((2, 5), jnp.int32)), "for a batch, jax.vmap the model"),
        (lambda: gpt()(jnp.ones(5)), "whole numbers, but was given shape .* of float32"),
        (lambda: Sequential([linear(4, 8)])(jnp.ones(7)), r"w takes one example of shape \(8,\)"),
    ],
)
def test_what_is_put_together_wrongly_is_told_what_to_write(make, sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # As for users, whom nothing checks types for.
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()


@pytest.mark.parametrize("build", [lambda k: MLP(4, 4, 4, key=k), lambda k: GPT(5, GPTConfig(width=8, heads=2), key=k)])
def test_an_ensemble_has_no_certificate_but_its_members_have(build):
    models = eqx.filter_vmap(build)(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match="of an ensemble take one member"):
        Certificate.of(models)
    assert "no bound: " in repr(models)
    assert Certificate.of(jax.tree.map(lambda x: x[0], models)).rows


def test_a_module_that_does_not_know_its_inputs_can_be_looked_at():
    assert "no bound without a space" in repr(HeadFirst(linear(3, 8, "head"), linear(8, 40, "body")))


def test_modules_say_what_they_take():
    assert MLP(48, 8, 4, key=jax.random.key(0)).takes == Vector((48,))
    assert gpt().takes == Symbols(11)
    assert gpt().stack.takes == Tokens(16)
    assert Sequential([RMSNorm(), ReLU(), Residual(linear(8, 8))]).takes == Vector((8,))
    assert ReLU().takes is None
    certificate = Certificate.of(MLP(48, 8, 4, zero_init=False, key=jax.random.key(0)), space=Vector((3, 4, 4)))
    assert certificate.l2_factor == pytest.approx(np.sqrt(4 / 48))
    assert [example_shape(space, 5) for space in (Vector((3, 4)), Tokens(8), Symbols(9))] == [(3, 4), (5, 8), (5,)]


def test_an_embedding_begins_the_certified_function():
    table = Weight(0.5 * jnp.ones((3, 4, 1)), "table", ROWS)
    inside = Sequential([Embedding(table), PerToken(linear(4, 4))])
    certificate = Certificate.of(inside)
    assert certificate.lipschitz == pytest.approx(svd_norm(inside.layers[1].module.weight.array))
    assert certificate.certified.domain.radius == pytest.approx(0.5)
    with pytest.raises(SpaceError, match="table takes a sequence of whole numbers"):
        Certificate.of(Sequential([PerToken(linear(4, 4)), Embedding(table)]))


def test_small_radii_do_not_vanish():
    """Nine squarings of a thousandth leave 10^-1300, which float64 does not hold."""
    model = Sequential([*[SquaredReLU(8)] * 9, linear(8, 8)])
    certificate = Certificate.of(model, radius=1e-3)
    assert certificate.certified.log10_radius < -1200
    assert certificate.certified.radius > 0
    assert "10^-1" in str(certificate)


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")  # So Equinox calls a NumPy number.
@pytest.mark.parametrize(
    ("kind", "make", "radius", "gain"),
    [
        (np.float32, lambda c: Sequential([SquaredReLU(4), EYE]), lambda c: c, lambda c: 4 * float(c)),
        (np.float16, lambda c: Sequential([SquaredReLU(4), EYE]), lambda c: c, lambda c: 4 * float(c)),
        (np.float32, lambda c: Sequential([Scale(c), EYE]), lambda c: 1.0, float),
        (np.float32, lambda c: ConvexResidual(TRIPLE, c), lambda c: 1.0, lambda c: 1 + 2 * float(c)),
        (np.float32, lambda c: Sequential([GELU(1 / c), EYE]), lambda c: 9.0, lambda c: 1.1289930686 / float(1 / c)),
    ],
)
def test_numbers_of_few_bits_are_bounded_in_many(kind, make, radius, gain, monkeypatch):
    """Logarithms in the type of the number would be off by more than the margin of float64."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for value in np.random.default_rng(0).uniform(0.1, 0.9, 50).astype(kind):
        assert Certificate.of(make(value), radius=radius(value)).lipschitz >= gain(value)


@pytest.mark.parametrize(
    ("model", "space"),
    [
        (Affine(Weight(np.ones((4, 2, 1)), "w", ENTRIES)), Vector((4,))),
        (Affine(Weight(np.ones((4, 1, 2)), "w", ENTRIES)), Vector((4,))),
        (WeightedResidual(PerToken(EYE), Weight(np.ones((4, 8, 1)), "s", ENTRIES)), Tokens(4)),
        (Sequential([Embedding(Weight(np.ones((3, 4, 2)), "w", ROWS))]), None),
        (Linear(Weight(np.eye(4), "w"), Weight(np.ones((4, 2)), "b", COLUMN)), None),
        (Linear(Weight(np.eye(4), "w"), Weight(np.ones((3, 1)), "b", COLUMN)), None),
    ],
)
def test_arrays_of_other_shapes_or_kinds_have_no_certificate(model, space, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"has the shape|entries, but|not real numbers"):
        Certificate.of(model, space=space)


def test_complex_weights_have_no_certificate(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="holds complex128, not real numbers"):
        Certificate.of(Linear(Weight(1j * np.eye(4), "w")))


def test_layers_may_come_from_a_generator():
    model = Sequential(layer for layer in [linear(8, 8), ReLU()])
    assert len(model.layers) == 2


def test_spaces_are_at_the_top():
    assert lipzoo.theory.space.Vector is Vector
