"""Every map of singular values against NumPy's SVD, and every guarantee after one step and after many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipzoo.constraints import (
    CONSTRAINTS,
    Constraint,
    HardCap,
    HardCapPoly,
    SoftCap,
    SpectralHammer,
    SpectralNormalize,
    SpectralWeightDecay,
    Step,
    Stiefel,
    SvdCap,
    Unconstrained,
    WeightDecay,
)
from lipzoo.constraints.hard_cap import HARD_CAP_ROWS
from lipzoo.constraints.soft_cap import LARGEST_SHRINK, MAX_ROUNDS, round_loss, soft_cap_round, solve
from lipzoo.models import Linear
from lipzoo.theory import msign
from lipzoo.theory.weight import Weight, exact_norm
from tests.theory.test_msign import evaluate

SHAPES = {(1, 64): 0.02, (64, 1): 54.0, (24, 24): 1.0, (200, 40): 0.3, (40, 200): 2.7, (3, 12, 20): 7.1}
"""Shapes of the tests that compile as users do, each with a cap of its own: one compilation serves all of them."""
HOLDING = [c for c in CONSTRAINTS.values() if c.guarantees and c.caps]


def with_spectrum(shape, largest, seed=0, smallest=0.01):
    matrix = np.random.default_rng(seed).normal(size=shape)
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    spectrum = np.linspace(largest, smallest * largest, sigma.shape[-1])
    return ((u * spectrum) @ vt).astype(np.float32)


def singular_values(matrix):
    return np.linalg.svd(np.asarray(matrix).astype(np.float64), compute_uv=False)


def mapped(function, matrix):
    """The oracle: `function` applied to the singular values, in float64."""
    u, sigma, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return (u * function(sigma)[..., None, :]) @ vt


@functools.cache
def compiled(constraint, quickly):
    """For all caps and steps, which are numbers given to it, as in a training step. jit does not notice by itself that
    XLA is to optimize otherwise."""
    return jax.jit(lambda w, cap, norm, key: constraint(w, cap=cap, step=Step(norm, key=key)))


def apply(constraint, matrix, cap, norm=0.0):
    """A matrix, or a batch of them, constrained after a step of this norm."""
    function = compiled(constraint, jax.config.read("jax_disable_most_optimizations"))
    return np.asarray(function(np.asarray(matrix), np.float32(cap), np.asarray(norm, np.float32), jax.random.key(0)))


def soft_cap_function(cap, update_norm, decay=0.0):
    """The composed rounds of the soft cap, α found by bisection in float64."""

    def function(sigma):
        k = cap * (1 - decay) + update_norm
        while k > cap * (1 + 1e-12):
            goal = max(cap, k * (1 - LARGEST_SHRINK))
            low, high = 0.0, 1 / (3 * k**2)
            for _ in range(100):
                alpha = (low + high) / 2
                u = k - alpha * k**3
                low, high = (alpha, high) if u + alpha * u**3 > goal else (low, alpha)
            u = sigma - high * sigma**3
            sigma, k = u + high * u**3, goal
        return sigma

    return function


EXACT = [
    ("hard-cap", HardCap(), lambda cap, eta: lambda s: np.minimum(s, cap), 2e-3),
    ("svd-cap", SvdCap(), lambda cap, eta: lambda s: np.minimum(s, cap), 1e-4),
    ("spectral-normalize", SpectralNormalize(), lambda cap, eta: lambda s: s * min(1, cap / s.max()), 5e-4),
    ("soft-cap", SoftCap(), soft_cap_function, 1e-4),
    ("stiefel", Stiefel(), lambda cap, eta: lambda s: cap * evaluate(msign.SIX_ROW, s / np.linalg.norm(s)), 0.02),
    ("hard-cap-poly", HardCapPoly(), lambda cap, eta: lambda s: cap * evaluate(HARD_CAP_ROWS, s / cap), 1e-4),
    ("spectral-hammer", SpectralHammer(), lambda cap, eta: lambda s: np.r_[cap, s[1:]], 1e-3),
    ("spectral-weight-decay", SpectralWeightDecay(rate=0.2), lambda cap, eta: lambda s: np.r_[0.8 * s[0], s[1:]], 1e-3),
    ("none", Unconstrained(), lambda cap, eta: lambda s: s, 1e-12),
    ("weight-decay", WeightDecay(), lambda cap, eta: lambda s: s * min(1, cap / s.max()), 2e-3),
]


@pytest.mark.parametrize(("name", "constraint", "function", "tolerance"), EXACT, ids=[row[0] for row in EXACT])
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (24, 24), (80, 8), (8, 80)])
@pytest.mark.parametrize("relative_update", [0.02, 1.9])
def test_singular_values_are_mapped_as_documented(name, constraint, function, tolerance, shape, relative_update):
    cap = 2.5
    matrix = with_spectrum(shape, cap * (1 + relative_update))
    result = apply(constraint, matrix, cap, relative_update * cap)
    expected = mapped(function(cap, relative_update * cap), matrix)
    assert np.linalg.norm(result - expected, 2) <= tolerance * cap


def test_every_constraint_of_the_table_is_in_the_cases():
    assert {row[0] for row in EXACT} == set(CONSTRAINTS)
    assert all(isinstance(row[1], CONSTRAINTS[row[0]]) for row in EXACT)


LOW = {"bfloat16": [(1, 64), (24, 24), (200, 40), (40, 200)], "float8_e4m3fn": [(24, 24), (200, 40)]}
IN_LOW_PRECISION = [(c, d) for c in (SoftCap, Stiefel) for d in LOW]
"""The others compute in float32 whatever they are told."""


@pytest.mark.optimized
@pytest.mark.parametrize(("constraint", "dtype"), [*((c, "float32") for c in HOLDING), *IN_LOW_PRECISION])
@settings(max_examples=30, deadline=None)
@given(data=st.data(), relative_update=st.floats(1e-4, 7.0), seed=st.integers(0, 1000))
def test_the_cap_holds_after_any_admitted_step(constraint, dtype, data, relative_update, seed):
    shape = data.draw(st.sampled_from(LOW.get(dtype, list(SHAPES))))
    cap = SHAPES[shape]
    matrix = with_spectrum(shape, cap * (1 + relative_update) * (1 - 1e-6), seed)
    made = constraint(project_dtype=dtype)
    assert made.refusal(cap, relative_update * cap) is None
    result = apply(made, matrix, cap, relative_update * cap)
    assert singular_values(result).max() <= cap


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("constraint", "dtype"), [*((c, "float32") for c in HOLDING), (SoftCap, "bfloat16"), (Stiefel, "bfloat16")]
)
def test_the_cap_holds_against_updates_along_the_top_direction(constraint, dtype):
    """The worst update of the admitted norm: all of it on what is already largest, step after step."""
    cap, decay = 1.7, 0.01
    made = constraint(project_dtype=dtype)

    @jax.jit
    def worst_step(matrix, norm):
        u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
        update = norm * (1 - 1e-6) * (u @ vt)
        return made((1 - decay) * matrix + update, cap=cap, step=Step(norm, decay))

    for relative_update in (0.05, 2.0):
        matrix = jnp.asarray(with_spectrum((12, 40), 0.999 * cap))
        for _ in range(60):
            matrix = worst_step(matrix, jnp.float32(relative_update * cap))
            assert singular_values(matrix).max() <= cap


def coherent(shape):
    """Matrices of norm 1 whose products are sums of equal terms or signs, so that all roundings can go one way."""
    random = np.random.default_rng(0)
    signs = np.sign(random.normal(size=(shape[0], 1)) * random.normal(size=(1, shape[1])))
    u, _, vt = np.linalg.svd(random.normal(size=shape), full_matrices=False)
    kinds = np.stack([np.ones(shape), signs / 3, u @ vt, np.abs(u @ vt)])
    return kinds / np.linalg.svd(kinds, compute_uv=False)[:, :1, None]


@pytest.mark.optimized
@pytest.mark.parametrize("constraint", HOLDING)
@pytest.mark.parametrize("shape", [(24, 24), (1, 64), (200, 40)])
def test_the_cap_holds_where_all_roundings_go_one_way(constraint, shape):
    for update in (0.0, 0.05, 0.3):
        for matrix in (coherent(shape) * (1 + update) * (1 - 1e-7)).astype(np.float32):
            assert 0.9 < singular_values(apply(constraint(), matrix, 1.0, update)).max() <= 1


@pytest.mark.optimized
def test_the_soft_cap_holds_for_large_constant_matrices():
    """With a margin of 16 units in the last place, whatever the size, this one ended 3.7e-6 above the cap."""
    matrix = np.full((768, 768), 1.3 * (1 - 1e-7) / 768, np.float32)
    result = np.asarray(apply(SoftCap(), matrix, 1.0, 0.3)).astype(np.float64)
    assert 0.9 < np.sqrt(np.linalg.eigvalsh(result @ result.T)[-1]) * (1 + 1e-12) <= 1


@pytest.mark.optimized
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_finite_matrices_of_any_size_have_finite_images_under_the_cap(name):
    """The squares, and even the norm, of such matrices are beyond the largest or below the smallest number."""
    made = CONSTRAINTS[name]()
    for scale in (1e20, 3e38, 1e-30, 1e-42, 0.0):
        matrix = np.full((24, 24), scale, np.float32)
        matrix[0, 0] *= 0.5
        result = apply(made, matrix, 2.0, min(scale * 24, 3e38))
        assert np.isfinite(result).all()
        assert not made.guarantees or singular_values(result).max() <= 2


@pytest.mark.optimized
@pytest.mark.parametrize("shape", [(8, 8), (40, 400), (200, 200)])
@pytest.mark.parametrize("shrink", [1e-4, 0.05, LARGEST_SHRINK])
def test_a_round_of_the_soft_cap_rounds_no_more_than_was_proved(shape, shrink):
    """Against float64, for matrices of norm 1: within q·a and the last rounding, u√s."""
    alpha = float(solve(jnp.float32(shrink)))
    bound = shrink * round_loss(shape, "float32") + min(shape) ** 0.5 * 2.0**-24
    for matrix in coherent(shape).astype(np.float32):
        exact = mapped(lambda s: s * (1 - 3 * (a := alpha * s**2) ** 2 + 3 * a**3 - a**4), matrix)
        computed = np.asarray(soft_cap_round(jnp.asarray(matrix), jnp.float32(alpha), "float32"))
        assert np.linalg.norm(computed - exact, 2) <= bound


@pytest.mark.parametrize("constraint", HOLDING)
def test_zero_stays_zero_and_batches_are_independent(constraint):
    batch = with_spectrum((3, 12, 20), 4.0)
    batch[1] = 0
    result = apply(constraint(), batch, 2.0, [2.0, 2.0, 2.0])
    assert (result[1] == 0).all()
    for index in (0, 2):
        single = apply(constraint(), batch[index], 2.0, 2.0)
        np.testing.assert_allclose(result[index], single, atol=2e-4)


@pytest.mark.parametrize("shrink", [0.0, 1e-7, 1e-3, 0.1, LARGEST_SHRINK])
def test_soft_cap_solves_its_quartic(shrink):
    roots = np.roots([1, -3, 3, 0, -shrink])
    expected = min(r.real for r in roots if abs(r.imag) < 1e-7 and r.real > -1e-7)
    assert float(solve(jnp.float32(shrink))) == pytest.approx(expected, abs=2e-4 if shrink == LARGEST_SHRINK else 1e-6)


def test_soft_cap_is_monotone_up_to_its_limit_and_takes_the_rounds_it_needs():
    cap = 1.0
    for update in (0.306, 0.307, 2.0, 7.4):
        sigma = np.linspace(0, cap + update, 2000)
        result = soft_cap_function(cap, update)(sigma)
        assert (np.diff(result) >= -1e-12).all()
        assert result.max() <= cap * (1 + 1e-9)


def test_soft_cap_barely_touches_small_singular_values():
    matrix = with_spectrum((40, 60), 3.05, smallest=0.001)
    before = singular_values(matrix)
    after = singular_values(apply(SoftCap(), matrix, 3.0, 0.05))
    assert (np.abs(after - before)[before < 1] < 2e-3).all()


REFUSED = [
    (SoftCap(), 1.0, (81 / 62) ** MAX_ROUNDS - 1 + 1e-3),
    (HardCapPoly(), 1.0, 2.1),
    (HardCapPoly(), 1.0, float("inf")),
]


@pytest.mark.parametrize(("constraint", "cap", "update_norm"), REFUSED)
def test_steps_that_would_break_the_map_are_refused(constraint, cap, update_norm):
    assert "cap" in constraint.refusal(cap, update_norm)
    assert constraint.refusal(cap, 0.1 * cap) is None


@pytest.mark.optimized
@pytest.mark.parametrize("constraint", [c for c in HOLDING if c is not SoftCap])
@pytest.mark.parametrize("excess", [1e3, 3e5, 1e8, 1e12])
@pytest.mark.parametrize("cap", [1e-6, 1.0, 1e6])
def test_the_cap_holds_however_far_the_step_went(constraint, excess, cap):
    result = apply(constraint(), with_spectrum((40, 200), excess * cap), cap)
    assert 0.9 * cap <= singular_values(result).max() <= cap


@pytest.mark.parametrize("constraint", HOLDING)
def test_a_module_brings_itself_under_its_caps_from_anywhere(constraint):
    """Without being told of a step, `project` takes the norm itself for one."""
    weight = Weight(jnp.asarray(with_spectrum((12, 20), 40.0)), "w", cap=0.5)
    projected = Linear(weight).project(constraint())
    assert exact_norm(projected.weight) <= 0.5


def test_known_flaw_of_the_published_hard_cap_polynomial():
    matrix = with_spectrum((24, 24), 2.9)
    largest = singular_values(apply(HardCapPoly(), matrix, 1.0)).max()
    assert 1 < largest < 1.0109


def test_power_iteration_normalization_would_break_the_cap():
    """Why spectral-normalize uses an upper bound: dividing by an estimate leaves the norm above the cap."""
    from lipzoo.theory.norms import estimate_top_singular

    matrix = with_spectrum((64, 64), 4.0, smallest=0.99)
    sigma, _, _ = estimate_top_singular(jnp.asarray(matrix), jax.random.key(0), squarings=4)
    assert singular_values(matrix / (np.asarray(sigma) / 2.0)).max() > 2.0
    assert singular_values(apply(SpectralNormalize(), matrix, 2.0)).max() <= 2.0


def test_constraints_are_values():
    assert SoftCap() == SoftCap()
    assert hash(SoftCap()) == hash(SoftCap(project_dtype="float32"))
    with pytest.raises(TypeError):
        Constraint()


def operands(jaxpr, names):
    """The shapes that these primitives are given anywhere in a traced function."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in names:
            yield equation.invars[0].aval.shape
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                yield from operands(inner, names) if hasattr(inner, "eqns") else ()


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_no_batch_of_factorizations_is_in_a_step(name):
    """Several of them at once wait for each other for ever in XLA's CPU backend, on few cores."""
    constraint = CONSTRAINTS[name]()
    step = Step(jnp.float32(0.1), jnp.float32(0), jax.random.key(0))
    traced = jax.make_jaxpr(lambda w: constraint(w, cap=1.0, step=step))(jnp.ones((2, 3, 8, 6))).jaxpr
    found = list(operands(traced, {"svd", "qr", "geqrf", "householder_product", "eigh", "eig", "cholesky", "lu"}))
    assert found == ([(8, 6)] if name == "svd-cap" else [])
