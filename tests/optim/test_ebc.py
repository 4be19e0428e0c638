"""EBC: its budgets against finite differences in NumPy, its loops against their formulas, and clipped real steps."""

import dataclasses
import functools
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.cli.run import train
from lipzoo.data.digits import load_digits
from lipzoo.devices.mesh import batched, make_mesh
from lipzoo.models import GPT, MLP, GPTConfig
from lipzoo.optim import EBCConfig, OptimizerConfig
from lipzoo.optim.ebc.clip import clip_by_predictions, shrink_until
from lipzoo.optim.ebc.control import ControllerConfig, GuardConfig, SurrogateConfig
from lipzoo.optim.ebc.divergence import mean_kl
from lipzoo.optim.ebc.state import telemetry
from lipzoo.report.metrics import read_metrics
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import map_weights, weights
from lipzoo.train.plan import resolve
from lipzoo.train.state import init_state
from lipzoo.train.step import make_train_step, step_of
from tests.conftest import SMALL_RUN, svd_norm
from tests.recipe.test_recipe import make

TOKENS = 24
FRESH = {"update_every": 1, "beta_full_sweep": 1, "beta_ema": 0.0, "safety": 1.0, "include_embed_out": True}
"""All layers are measured at every step, along the very update."""


def problem(getkey):
    """A model, an update for each of its weights, and the inputs of a probe."""
    model = MLP(12, 16, 5, depth=3, activation="tanh", bias=True, zero_init=False, key=getkey())
    model = map_weights(lambda w: w.with_array(w.array + 0.1 * jax.random.normal(getkey(), w.array.shape)), model)
    updates = map_weights(lambda w: w.with_array(0.3 * jax.random.normal(getkey(), w.array.shape)), model)
    return model, updates, jax.random.normal(getkey(), (TOKENS, 12))


def arrays(tree):
    return [np.asarray(weight.array).astype(np.float64) for weight in weights(tree)]


def numpy_logits(matrices, x):
    """The same network in float64: (matrix, bias) three times, with tanh between."""
    x = np.asarray(x).astype(np.float64)
    for index in range(0, 6, 2):
        x = x @ matrices[index].T + matrices[index + 1][:, 0]
        x = np.tanh(x) if index < 4 else x
    return x


def numpy_change(model, step, x, only=None, eps=1e-4):
    """J·step by central differences, of one layer or of all."""
    w, s = arrays(model), arrays(step)
    s = [v if only in (None, i) else 0 * v for i, v in enumerate(s)]
    plus, minus = ([a + sign * eps * b for a, b in zip(w, s, strict=True)] for sign in (1, -1))
    return (numpy_logits(plus, x) - numpy_logits(minus, x)) / (2 * eps)


def numpy_kl(before, after):
    """Mean KL(softmax(before) ‖ softmax(after)) from its definition."""

    def log_softmax(z):
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    p = log_softmax(before)
    return (np.exp(p) * (p - log_softmax(after))).sum(-1).mean()


def known(config, lr, fraction=1.0, clock=0):
    """What an update is told beside its gradient."""
    hyper = OptimizerConfig().hyper({}, target_kl=config.target_kl)
    return {"hyper": hyper, "clock": jnp.int32(clock), "lr": jnp.float32(lr), "fraction": jnp.float32(fraction)}


@functools.cache
def compiled(config):
    transform = clip_by_predictions(config)
    return transform.init, jax.jit(
        lambda updates, state, model, x, extra: transform.update(
            updates, state, model, logits_fn=lambda m: jax.vmap(m)(x), **extra
        )
    )


def clip(config, model, updates, x, lr, fraction=1.0, state=None, clock=0):
    """Clipped updates and what EBC remembers."""
    init, update = compiled(dataclasses.replace(config, target_kl=0.05))
    state = init(model) if state is None else state
    return update(updates, state, model, x, known(config, lr, fraction, clock))


def centred_norm(change):
    return np.linalg.norm(change - change.mean(-1, keepdims=True))


def test_betas_are_those_of_finite_differences(getkey):
    model, updates, x = problem(getkey)
    _, state = clip(EBCConfig(**FRESH), model, updates, x, 0.1)
    expected = [
        centred_norm(numpy_change(model, updates, x, only=i)) / np.linalg.norm(u) for i, u in enumerate(arrays(updates))
    ]
    np.testing.assert_allclose(state.beta, expected, rtol=1e-4)


def test_budgets_follow_their_formulas(getkey):
    model, updates, x = problem(getkey)
    terms = np.array([0.1 * centred_norm(numpy_change(model, updates, x, only=i)) for i in range(6)])
    expected = {"l1": 1.05 * terms.sum(), "l2": 1.05 * math.sqrt(6 * (terms**2).sum())}
    found = {}
    for aggregate, value in expected.items():
        config = EBCConfig(aggregate=aggregate, target_kl=0.002, **{**FRESH, "safety": 1.05})
        clipped, state = clip(config, model, updates, x, 0.1)
        found[aggregate] = float(state.budget)
        assert found[aggregate] == pytest.approx(value, rel=1e-4)
        assert float(state.tau) == pytest.approx(math.sqrt(4 * TOKENS * 0.002))
        assert float(state.c) == pytest.approx(math.sqrt(4 * TOKENS * 0.002) / value, rel=1e-4)
        for before, after in zip(arrays(updates), arrays(clipped), strict=True):
            np.testing.assert_allclose(after, float(state.c) * before, rtol=1e-5)
    assert found["l2"] / math.sqrt(6) <= found["l1"] <= found["l2"]


def test_the_exact_budget_is_the_variance_of_finite_differences(getkey):
    model, updates, x = problem(getkey)
    _, state = clip(EBCConfig(aggregate="exact", target_kl=1e-4), model, updates, x, 0.1)
    logits, change = numpy_logits(arrays(model), x), 0.1 * numpy_change(model, updates, x)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kl = 0.5 * ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).mean()
    assert float(state.tau / state.budget) == pytest.approx(math.sqrt(1e-4 / kl), rel=1e-4)
    # What is beyond second order is taken off c, so that the divergence is at most δ.
    assert 0.99 * math.sqrt(1e-4 / kl) < float(state.c) <= math.sqrt(1e-4 / kl) * (1 + 1e-4)


@pytest.mark.parametrize(("aggregate", "low", "high"), [("exact", 0.99, 1.01), ("l1", 0.001, 0.3), ("l2", 0.001, 0.3)])
def test_the_predicted_divergence_against_the_measured_as_the_learning_rate_falls(aggregate, low, high, getkey):
    """Exact: the ratio goes to 1, and its error with the learning rate. The budgets foretell many times too much."""
    model, updates, x = problem(getkey)
    before, ratios = numpy_logits(arrays(model), x), []
    for lr in (0.3, 0.03, 0.003):
        config = EBCConfig(aggregate=aggregate, target_kl=1.0, **({} if aggregate == "exact" else FRESH))
        _, state = clip(config, model, updates, x, lr)
        predicted = float(state.budget / state.tau) ** 2
        moved = [w - lr * u for w, u in zip(arrays(model), arrays(updates), strict=True)]
        ratios.append(numpy_kl(before, numpy_logits(moved, x)) / predicted)
    assert low <= ratios[-1] <= high
    if aggregate == "exact":
        errors = np.abs(np.array(ratios) - 1)
        assert errors[1] < 0.5 * errors[0]
        assert errors[2] < 0.5 * errors[1]


def test_the_divergence_is_at_most_a_quarter_of_the_squared_change():
    random = np.random.RandomState(0)
    for classes in (2, 3, 50):
        for scale in (0.01, 1.0, 30.0):
            before, change = 3 * random.randn(500, classes), scale * random.randn(500, classes)
            change -= change.mean(-1, keepdims=True)
            kls = np.array([numpy_kl(z[None], (z + d)[None]) for z, d in zip(before, change, strict=True)])
            assert (kls <= 0.25 * (change**2).sum(-1) * (1 + 1e-9)).all()
            ours = float(mean_kl(jnp.float32(before), jnp.float32(before + change)))
            assert ours == pytest.approx(kls.mean(), rel=1e-3)


def test_two_classes_far_apart_reach_the_quarter():
    """p = (½, ½) and d = ±ε: KL = ε²/2 = ¼‖d‖² to first order, so the constant cannot be lowered."""
    before, after = jnp.zeros((1, 2)), jnp.array([[1e-2, -1e-2]])
    assert float(mean_kl(before, after)) == pytest.approx(0.25 * 2e-4, rel=1e-3)


@pytest.mark.parametrize("lr", [1e-3, 1.0, 100.0])
def test_fresh_budgets_of_all_layers_hold_the_logits_inside_the_radius_to_first_order(lr, getkey):
    model, updates, x = problem(getkey)
    for aggregate in ("l1", "l2"):
        config = EBCConfig(aggregate=aggregate, target_kl=1e-6, **FRESH)
        clipped, state = clip(config, model, updates, x, lr)
        assert lr * centred_norm(numpy_change(model, clipped, x)) <= float(state.tau) * (1 + 1e-4)
        assert float(state.c) < 1


def test_a_stack_counts_as_its_slices(getkey):
    config = GPTConfig(depth=3, width=16, heads=2, zero_init=False)
    gpt = GPT(7, config, key=getkey())
    tokens = jax.random.randint(getkey(), (2, 5), 0, 7)
    updates = map_weights(lambda w: w.with_array(jax.random.normal(getkey(), w.array.shape)), gpt)
    ebc = EBCConfig(**{**FRESH, "include_embed_out": False})
    transform, extra = clip_by_predictions(ebc), known(ebc, 0.1)

    def logits(model):
        return jax.vmap(model)(tokens).reshape(-1, 7)

    _, state = transform.update(updates, transform.init(gpt), gpt, logits_fn=logits, **extra)
    assert state.beta.shape == (18,)
    up = next(weight for weight in weights(updates) if weight.name == "blocks.up")
    one = map_weights(lambda w: w.with_array(jnp.zeros_like(w.array)), updates)
    one = map_weights(lambda w: w.with_array(w.array.at[1].set(up.array[1])) if w.name == up.name else w, one)
    names = [weight.name for weight in weights(gpt) if weight.place == "hidden"]
    change = jax.jvp(logits, (gpt,), (one,))[1]
    expected = centred_norm(np.asarray(change)) / np.linalg.norm(up.array[1])
    assert float(state.beta[3 * names.index(up.name) + 1]) == pytest.approx(expected, rel=1e-3)


def test_layers_are_measured_in_turn_and_all_of_them_now_and_then(getkey):
    model, updates, x = problem(getkey)
    config = EBCConfig(update_every=3, probe_layers=4, beta_full_sweep=20, beta_ema=0.5, include_embed_out=True)
    state, changed = None, []
    for step in range(24):
        updates = map_weights(lambda w: w.with_array(jax.random.normal(getkey(), w.array.shape)), model)
        before = np.zeros(6) if state is None else np.asarray(state.beta)
        _, state = clip(config, model, updates, x, 0.1, state=state, clock=step)
        changed.append(np.flatnonzero(before != np.asarray(state.beta)).tolist())
    everything = list(range(6))
    expected = dict.fromkeys((0, 1, 2, 4, 8, 16, 20), everything)
    expected |= {3: [0, 1, 4, 5], 6: [2, 3, 4, 5], 9: [0, 1, 2, 3], 12: [0, 1, 4, 5], 15: [2, 3, 4, 5]}
    expected |= {18: [0, 1, 2, 3], 21: [0, 1, 4, 5]}
    assert changed == [expected.get(step, []) for step in range(24)]


@pytest.mark.parametrize("huber", [0.0, 0.01])
def test_betas_are_smoothed_and_their_changes_limited(huber, getkey):
    model, updates, x = problem(getkey)
    config = EBCConfig(**{**FRESH, "beta_ema": 0.75}, beta_huber_delta=huber)
    _, first = clip(config, model, updates, x, 0.1)
    other = map_weights(lambda w: w.with_array(jax.random.normal(getkey(), w.array.shape)), model)
    _, fresh = clip(config, model, other, x, 0.1)
    _, second = clip(config, model, other, x, 0.1, state=first, clock=1)
    residual = np.asarray(fresh.beta - first.beta)
    residual = np.clip(residual, -huber, huber) if huber else residual
    np.testing.assert_allclose(second.beta, first.beta + 0.25 * residual, rtol=1e-5)


def test_the_target_follows_the_square_of_the_schedule(getkey):
    """So τ/S, which is c to first order, does not: it is the same at a third of the learning rate."""
    model, updates, x = problem(getkey)
    config = EBCConfig(aggregate="exact", target_kl=1e-3)
    following = dataclasses.replace(config, target_schedule="lr")
    _, full = clip(following, model, updates, x, 0.3)
    _, third = clip(following, model, updates, x, 0.1, fraction=1 / 3)
    _, constant = clip(config, model, updates, x, 0.1, fraction=1 / 3)
    assert float(third.tau / third.budget) == pytest.approx(float(full.tau / full.budget), rel=1e-5)
    assert float(constant.tau / constant.budget) == pytest.approx(3 * float(full.tau / full.budget), rel=1e-5)
    for state, target in ((full, 1e-3), (third, 1e-3 / 9), (constant, 1e-3)):
        assert 0.9 * target < float(state.kl) <= target


def test_calibration_makes_the_measured_divergence_the_target(getkey):
    """With steps so large that the first order is wrong: without it τ/S is too large a c, with it it is right."""
    model, updates, x = problem(getkey)
    config = EBCConfig(aggregate="exact", target_kl=0.01, update_every=1)
    _, plain = clip(config, model, updates, x, 5.0)
    calibrated = dataclasses.replace(config, surrogate=SurrogateConfig(enable=True, beta=0.5))
    state = None
    for step in range(20):
        _, state = clip(calibrated, model, updates, x, 5.0, state=state, clock=step)
    assert state is not None
    assert float(plain.c) < 0.99 * float(plain.tau / plain.budget)
    assert float(state.c) == pytest.approx(float(state.tau / state.budget), rel=0.001)
    assert float(state.kl) == pytest.approx(0.01, rel=0.002)
    assert float(state.rho) == pytest.approx(1, rel=0.001)


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 1e-1])
def test_refinement_takes_off_the_error_of_first_order(delta, getkey):
    model, updates, x = problem(getkey)
    errors = []
    for refine in (0, 1, 2):
        config = EBCConfig(aggregate="exact", target_kl=delta, refine=refine)
        _, state = clip(config, model, updates, x, 5.0)
        moved = [w - 5.0 * float(state.c) * u for w, u in zip(arrays(model), arrays(updates), strict=True)]
        kl = numpy_kl(numpy_logits(arrays(model), x), numpy_logits(moved, x))
        assert float(state.kl) == pytest.approx(kl, rel=1e-3)
        errors.append(abs(kl / delta - 1))
    assert errors[1] < max(2 * errors[0] ** 2, 1e-3)
    assert errors[2] < max(errors[1], 1e-3)


@pytest.mark.parametrize("refine", [0, 1])
def test_the_divergence_on_the_probe_is_at_most_the_target(refine, getkey):
    """Whatever the seed and however high the learning rate: unrefined first steps once reached 1.82 δ at δ = 0.1."""
    for _ in range(12):
        model, updates, x = problem(getkey)
        before = numpy_logits(arrays(model), x)
        for delta in (0.1, 1.0):
            for lr in (0.3, 5.0, 1e3):
                config = EBCConfig(aggregate="exact", target_kl=delta, refine=refine)
                clipped, state = clip(config, model, updates, x, lr)
                moved = [w - lr * u for w, u in zip(arrays(model), arrays(clipped), strict=True)]
                kl = numpy_kl(before, numpy_logits(moved, x))
                assert kl <= delta * (1 + 1e-4)
                assert kl >= 0.05 * delta or float(state.c) == 1
                assert float(state.kl) == pytest.approx(kl, rel=1e-3)


LINES = {
    "a square": (lambda c: 9 * c**2, 1 / 3),
    "steeper": (lambda c: 9 * c**2 + 90 * c**6, 1 / 8),
    "no number": (lambda c: jnp.where(c > 0.01, jnp.nan, c), 1 / 512),
    "infinite": (lambda c: jnp.where(c > 0.01, jnp.inf, c), 1 / 512),
    "never": (lambda c: jnp.full_like(c, jnp.nan), 0.0),
    "below": (lambda c: 0.5 * c, 1.0),
}


@pytest.mark.parametrize("name", LINES)
def test_steps_shrink_until_they_cause_no_more_than_the_limit(name):
    caused, expected = LINES[name]
    c, kl = shrink_until(caused, jnp.float32(1), jnp.float32(1))
    assert float(c) == pytest.approx(expected, rel=0.1)
    assert float(kl) <= 1


def test_the_loops_follow_their_formulas():
    one = jnp.float32(1)
    controller = ControllerConfig(period=20, halflife=20.0, kp=0.15, ki=0.02)
    delta, error = controller(jnp.float32(0.1), jnp.float32(0.4), jnp.float32(0.05), jnp.float32(0.25))
    assert float(error) == pytest.approx(0.5 * 0.4 + 0.5 * -0.2)
    assert float(delta) == pytest.approx(0.1 * math.exp(0.15 * -0.2 + 0.02 * 0.1))
    assert float(controller(one, error, one, one)[0]) == pytest.approx(0.3)
    guard, late = GuardConfig(), jnp.int32(100)
    assert float(guard(one, jnp.float32(4), jnp.int32(99))) == 1
    assert float(guard(one, jnp.float32(4), late)) == pytest.approx(0.5)
    assert float(guard(one, jnp.float32(1e6), late)) == pytest.approx(0.25)
    assert float(guard(jnp.float32(0.06), jnp.float32(1e6), late)) == pytest.approx(0.05)
    assert float(guard(jnp.float32(0.5), jnp.float32(0.9), late)) == pytest.approx(0.55)
    assert float(guard(jnp.float32(0.95), jnp.float32(0.9), late)) == 1
    surrogate = SurrogateConfig(enable=True, warmup=5, exponent=2.0)
    assert float(surrogate(one, jnp.float32(2), jnp.int32(4))) == 1
    assert float(surrogate(one, jnp.float32(2), late)) == pytest.approx(1.2)
    assert float(surrogate(one, jnp.float32(100), late)) == pytest.approx(0.8 + 0.2 * 8)
    assert float(surrogate(one, jnp.float32(jnp.nan), late)) == 1
    assert float(surrogate.factor(jnp.float32(3))) == pytest.approx(9)


def test_loops_act_inside_the_transformation(getkey):
    model, updates, x = problem(getkey)
    loops = {"controller": ControllerConfig(enable=True, period=2), "guard": GuardConfig(enable=True, warmup=0)}
    small = EBCConfig(target_kl=0.05, update_every=1, beta_full_sweep=1000, include_embed_out=True, **loops)
    _, state = clip(small, model, updates, x, 1e-3)
    stale = state._replace(beta=1e-3 * state.beta)
    _, after = clip(small, model, updates, x, 1e-3, state=stale, clock=3)
    assert float(after.rho) > 1
    assert float(after.tau_scale) == pytest.approx(max(float(after.rho) ** -0.5, 0.25))
    assert float(after.delta) == float(stale.delta), "the controller's period is 2"
    _, again = clip(small, model, updates, x, 1e-3, state=after, clock=4)
    assert float(again.delta) > float(after.delta)


REFUSED = [
    ({"target_kl": 0.0}, "--ebc.target-kl"),
    ({"update_every": 0}, "--ebc.update-every"),
    ({"probe_layers": 0}, "--ebc.probe-layers"),
    ({"beta_full_sweep": 0}, "--ebc.beta-full-sweep"),
    ({"beta_ema": 1.0}, "--ebc.beta-ema"),
    ({"beta_huber_delta": -1.0}, "--ebc.beta-huber-delta"),
    ({"safety": 0.0}, "--ebc.safety"),
    ({"probe_tokens": -1}, "--ebc.probe-tokens"),
    ({"refine": -1}, "--ebc.refine"),
    ({"refine": 1, "aggregate": "l1"}, "--ebc.refine is for --ebc.aggregate exact"),
    ({"controller": ControllerConfig(enable=True, delta_min=0.1)}, "--ebc.controller.delta-min"),
    ({"controller": ControllerConfig(enable=True, period=0)}, "--ebc.controller.period"),
    ({"controller": ControllerConfig(enable=True, kp=-1.0)}, "--ebc.controller.kp"),
    ({"guard": GuardConfig(enable=True, floor=0.0)}, "--ebc.guard.floor"),
    ({"guard": GuardConfig(enable=True, recover=0.5)}, "--ebc.guard.recover"),
    ({"surrogate": SurrogateConfig(enable=True, beta=0.0)}, "--ebc.surrogate.beta"),
    ({"surrogate": SurrogateConfig(enable=True, ceiling=0.5)}, "--ebc.surrogate.ceiling"),
]


@pytest.mark.parametrize(("options", "flag"), REFUSED, ids=[str(list(o.items())) for o, _ in REFUSED])
def test_impossible_regions_are_refused_in_one_sentence(options, flag):
    with pytest.raises(UserError) as error:
        dataclasses.replace(make(), ebc=EBCConfig(enable=True, **options)).check()
    assert flag in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_number_is_refused_in_use_or_not():
    for enable in (True, False):
        with pytest.raises(UserError, match=r"--ebc\.target-kl"):
            dataclasses.replace(make(), ebc=EBCConfig(enable=enable, target_kl=math.nan)).check()


def test_a_model_without_layers_in_scope_is_refused():
    with pytest.raises(UserError, match=r"--ebc\.include-embed-out"):
        dataclasses.replace(make(depth=1), ebc=EBCConfig(enable=True)).check()
    dataclasses.replace(make(depth=1), ebc=EBCConfig(enable=True, aggregate="exact")).check()


@pytest.mark.parametrize(
    ("examples", "tokens", "wanted", "shape"),
    [(64, 256, 0, (2, 256)), (16, 64, 0, (1, 32)), (512, 1, 0, (16, 1)), (8, 64, 200, (3, 64)), (4, 8, 999, (4, 8))],
)
def test_the_probe_is_a_part_of_the_batch(examples, tokens, wanted, shape):
    assert EBCConfig(probe_tokens=wanted).probe_shape(examples, tokens) == shape


DIGITS = load_digits()
EXACT = EBCConfig(enable=True, aggregate="exact", target_kl=1e-3, update_every=4)
BUDGET = EBCConfig(enable=True, aggregate="l1", target_kl=0.05, update_every=4, beta_full_sweep=16)
LOOPS = dataclasses.replace(
    BUDGET,
    controller=ControllerConfig(enable=True, period=6),
    guard=GuardConfig(enable=True, warmup=10),
    surrogate=SurrogateConfig(enable=True),
)


def run(recipe, steps, after=None):
    """The metrics of real steps on digits."""
    recipe.check()
    mesh = make_mesh(recipe.training.mesh)
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    told = []
    for batch in DIGITS.batches(batch_size=recipe.data.batch_size, count=steps, seed=0):
        before, (state, metrics) = state.model, train_step(state, jax.device_put(batch, batched(mesh)))
        told.append(metrics)
        if after:
            after(before, state, metrics)
    assert make_train_step(resolve(recipe)[0], mesh)._cache_size() == 1
    return {name: np.array([float(m[name]) for m in told]) for name in told[0]}


def small(ebc, **options):
    base = {"width": 16, "batch_size": 64, "steps": 60, "lr": 0.3, "optimizer": "muon", "sigma_max": 2.0}
    return dataclasses.replace(make(**{**base, **options}), ebc=ebc)


@pytest.mark.parametrize("ebc", [EXACT, BUDGET], ids=["exact", "l1"])
def test_one_and_eight_devices_clip_alike(ebc):
    ebc = dataclasses.replace(ebc, probe_tokens=16, target_kl=1e-3 if ebc is EXACT else 1e-5)
    one, many = run(small(ebc), 12), run(small(ebc, mesh="8"), 12)
    np.testing.assert_allclose(many["ebc_c"], one["ebc_c"], rtol=1e-4)
    assert one["ebc_c"].min() < 0.9


def test_the_same_updates_give_the_same_c_on_one_and_eight_devices(getkey):
    """Bit for bit: the probe is computed whole on each device."""
    model, updates, x = problem(getkey)
    ebc, mesh = EBCConfig(aggregate="exact", target_kl=1e-4), make_mesh("8")
    transform = clip_by_predictions(ebc)

    def c(x, constrain):
        probe = constrain(x)[:8]
        logits_fn = lambda m: jax.vmap(m)(probe)  # noqa: E731
        extra = known(ebc, 0.1)
        return transform.update(updates, transform.init(model), model, logits_fn=logits_fn, **extra)[1].c

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    many = jax.jit(lambda x: c(x, lambda x: jax.lax.with_sharding_constraint(x, whole)), in_shardings=batched(mesh))
    assert float(many(x)) == float(jax.jit(lambda x: c(x, lambda x: x))(x)) < 1


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_measured_divergence_is_the_target_where_a_step_is_clipped(optimizer):
    ebc = dataclasses.replace(EXACT, update_every=1, probe_tokens=32, refine=1)
    told = run(small(ebc, optimizer=optimizer, lr=0.3 if optimizer == "muon" else 0.03), 60)
    clipped = told["ebc_c"] < 1
    assert clipped.sum() > 20
    np.testing.assert_allclose(told["ebc_kl"][clipped], 1e-3, rtol=0.2)
    assert told["ebc_kl"].max() <= 1e-3


@pytest.mark.parametrize("ebc", [EXACT, LOOPS], ids=["exact", "loops"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_caps_hold_after_clipped_steps(ebc, optimizer):
    recipe = small(ebc, optimizer=optimizer, weight_decay=0.05)
    caps = {w.name: w.cap for w in weights(recipe.abstract_model())}

    def check(before, state, metrics):
        assert max(svd_norm(w.array).max() / caps[w.name] for w in weights(state.model)) <= 1
        assert 0 < float(metrics["ebc_c"]) <= 1

    told = run(recipe, 40, check)
    assert told["ebc_c"].min() < 1


def test_decay_is_not_clipped():
    """The same step with and without decay differs by λ·lr·share·W, whatever c is."""
    models, c = [], 1.0
    for decay in (0.0, 0.5):
        recipe = small(
            dataclasses.replace(EXACT, target_kl=1e-6),
            weight_decay=decay,
            constraint="none",
            zero_init=False,
            schedule="constant",
        )
        state = init_state(recipe, make_mesh())
        first = arrays(state.model)
        batch = next(DIGITS.batches(batch_size=64, count=1, seed=0))
        state, metrics = step_of(recipe, make_mesh())(state, jax.device_put(batch))
        models, c = [*models, arrays(state.model)], float(metrics["ebc_c"])
    assert c < 0.9
    share = weights(recipe.abstract_model())[0].share
    for start, free, decayed in zip(first, *models, strict=True):
        np.testing.assert_allclose(free - decayed, 0.5 * 0.3 * share * start, atol=1e-6)


def test_the_step_moves_nothing_to_the_host_and_tells_of_itself():
    recipe, mesh = small(LOOPS), make_mesh()
    state, train_step = init_state(recipe, mesh), step_of(recipe, mesh)
    on_device = [jax.device_put(b, batched(mesh)) for b in DIGITS.batches(batch_size=64, count=6, seed=0)]
    state, metrics = train_step(state, on_device[0])
    with jax.transfer_guard("disallow"):
        for batch in on_device[1:]:
            state, metrics = train_step(state, batch)
    assert make_train_step(resolve(recipe)[0], mesh)._cache_size() == 1
    told = {"tau", "budget", "c", "clipped", "kl", "rho", "delta", "tau_scale", "surrogate", "beta_mean", "beta_max"}
    assert set(telemetry(state.opt_state)) == {f"ebc_{name}" for name in told}
    assert all(np.isfinite(float(metrics[f"ebc_{name}"])) for name in told)
    assert telemetry(OptimizerConfig().build().init(state.model)) == {}


def test_a_run_with_all_loops_resumes_bit_for_bit(tmp_path):
    recipe = dataclasses.replace(make(**{**SMALL_RUN, "lr": 0.3}), ebc=LOOPS)
    assert train(recipe, tmp_path / "whole", resume=False) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "60")
    assert train(recipe, tmp_path / "cut", resume=True) == 0
    assert lipzoo.load(tmp_path / "cut").sha256 == lipzoo.load(tmp_path / "whole").sha256
    records = [[r for r in read_metrics(tmp_path / n / "metrics.jsonl") if "ebc_c" in r] for n in ("whole", "cut")]
    for whole, cut in zip(*records, strict=True):
        names = [name for name in whole if name.startswith("ebc_")]
        assert [whole[name] for name in names] == [cut[name] for name in names]
    assert (tmp_path / "cut" / "ebc.png").read_bytes().startswith(b"\x89PNG")
