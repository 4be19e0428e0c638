"""Networks of Equinox and PyTorch as models of this library: the same outputs, true bounds, and clear refusals."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.interop import of_torch
from lipzoo.models import AbstractModule, Sequential
from lipzoo.theory.weight import weights

CLOSE = 1e-5


def check(model, network, xs):
    """Outputs, by the network itself; and the certified bound against the Jacobians, by NumPy's SVD."""
    assert isinstance(model, AbstractModule)
    wanted = np.stack([np.asarray(network(x)) for x in xs])
    found, jacobians = jax.jit(lambda xs: (jax.vmap(model)(xs), jax.vmap(jax.jacfwd(model))(xs)))(xs)
    assert found.shape == wanted.shape
    jacobians = np.asarray(jacobians).reshape(len(xs), wanted[0].size, xs[0].size)
    assert abs(found - wanted).max() <= CLOSE * max(1.0, abs(wanted).max())
    certificate = lipzoo.Certificate.of(model)
    steepest = np.linalg.norm(np.asarray(jacobians), 2, axis=(1, 2)).max()
    assert 0 < steepest <= certificate.lipschitz * certificate.l2_factor


def randomized(network, key):
    """Gains and biases that are not all alike."""
    leaves, structure = jax.tree.flatten(network)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        x + 0.3 * jax.random.normal(key, x.shape) if eqx.is_inexact_array(x) else x
        for x, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


EXACT = functools.partial(jax.nn.gelu, approximate=False)
MLPS = {
    "default": {},
    "tanh": {"activation": jnp.tanh, "use_bias": False},
    "gelu": {"activation": jax.nn.gelu, "depth": 1, "final_activation": jax.nn.relu},
    "exact gelu": {"activation": EXACT, "use_final_bias": False},
    "partial": {"activation": functools.partial(jax.nn.gelu, approximate=True), "final_activation": jax.nn.identity},
    "one layer": {"depth": 0},
}


@pytest.mark.parametrize("case", MLPS)
def test_an_mlp_of_equinox(case, getkey):
    network = eqx.nn.MLP(6, 3, 8, key=getkey(), **{"depth": 2, **MLPS[case]})
    check(lipzoo.from_layers(network), eqx.filter_jit(network), jax.random.normal(getkey(), (5, 6)))


def sequence(getkey):
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(6, 8, key=getkey()),
            eqx.nn.LayerNorm(8, eps=1e-3),
            eqx.nn.Lambda(jax.nn.gelu),
            eqx.nn.Dropout(0.5, inference=True),
            eqx.nn.Sequential([eqx.nn.Linear(8, 8, use_bias=False, key=getkey()), eqx.nn.Identity()]),
            eqx.nn.RMSNorm(8, eps=0.1, use_bias=False),
            eqx.nn.Lambda(EXACT),
            eqx.nn.LayerNorm(8, use_weight=False, use_bias=False),
            eqx.nn.RMSNorm(8, use_weight=False, use_bias=True),
            eqx.nn.Dropout(0),
            eqx.nn.MLP(8, 2, 4, 1, jax.nn.tanh, key=getkey()),
        ]
    )


def test_a_sequence_of_equinox(getkey):
    network = randomized(sequence(getkey), getkey())
    model = lipzoo.from_layers(network)
    names = [weight.name for weight in weights(model)]
    assert names[:4] == ["0", "0.bias", "1.gain", "1.bias"]
    assert names[4:6] == ["4.0", "5.gain"]
    assert names[-2:] == ["10.layers.1", "10.layers.1.bias"]
    check(model, eqx.filter_jit(network), jax.random.normal(getkey(), (5, 6)))


def test_a_list_of_layers_and_functions(getkey):
    first, last = eqx.nn.Linear(12, 5, key=getkey()), eqx.nn.Linear(5, 2, key=getkey())
    model = lipzoo.from_layers([jnp.ravel, first, jax.nn.relu, last])
    network = lambda x: last(jax.nn.relu(first(jnp.ravel(x))))  # noqa: E731
    for x in jax.random.normal(getkey(), (3, 3, 4)):
        assert np.allclose(model(x), network(x), atol=CLOSE)
    assert lipzoo.Certificate.of(model, space=lipzoo.space.Vector((3, 4))).lipschitz < 10


class Own(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 100 * super().__call__(x)


def in_bfloat16(network):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, network)


def refusals(key):
    linear = eqx.nn.Linear(2, 2, key=key)
    ensemble = eqx.filter_vmap(lambda key: eqx.nn.Linear(2, 2, key=key))(jax.random.split(key, 3))
    return {
        "Conv1d": (eqx.nn.Sequential([eqx.nn.Conv1d(1, 1, 1, key=key)]), r"does not know Conv1d \(layer 0\)"),
        "BatchNorm": ([eqx.nn.BatchNorm(2, "batch", mode="batch")], r"does not know BatchNorm \(layer 0\)"),
        "subclass": (Own(2, 2, key=key), "does not know Own: it takes Linear"),
        "lambda": ([linear, lambda x: x], r"does not know \S*<lambda> \(layer 1\)"),
        "function": ([linear, jnp.sin], r"does not know sin \(layer 1\)"),
        "options": ([functools.partial(jax.nn.gelu, 1.0)], r"does not know partial \(layer 0\)"),
        "PReLU": (eqx.nn.MLP(2, 2, 2, 1, eqx.nn.PReLU(), key=key), r"does not know PReLU \(layer activation\)"),
        "scalar in": (eqx.nn.MLP("scalar", 2, 2, 1, key=key), "layers.0 is a Linear of scalars"),
        "scalar out": (eqx.nn.Linear(2, "scalar", key=key), "the network is a Linear of scalars"),
        "subclass inside": (
            eqx.tree_at(lambda mlp: mlp.layers[0], eqx.nn.MLP(2, 2, 2, 1, key=key), Own(2, 2, key=key)),
            r"does not know Own \(layer layers.0\)",
        ),
        "weight norm inside": (
            eqx.tree_at(lambda mlp: mlp.layers[0], eqx.nn.MLP(2, 2, 2, 1, key=key), eqx.nn.WeightNorm(linear)),
            r"does not know WeightNorm \(layer layers.0\)",
        ),
        "no layer before": (
            eqx.nn.MLP(2, 2, 2, 0, final_activation=jnp.tanh, key=key),
            "an MLP of depth 0 with a final",
        ),
        "scan": (eqx.nn.MLP(2, 2, 2, 3, scan=True, key=key), "is an MLP with scan=True: build it without"),
        "dropout": ([linear, eqx.nn.Dropout(0.1)], r"layer 1 is a Dropout that drops: give eqx.nn.inference_mode"),
        "norm": ([eqx.nn.LayerNorm((2, 3))], r"LayerNorm over the shape \(2, 3\)"),
        "bfloat16": (in_bfloat16(linear), "holds bfloat16: turn the network into float32 first"),
        "ensemble": (ensemble, "of an ensemble take one member"),
        "empty": ([], "without layers"),
        "object": (3, "does not know int"),
        "model": (lipzoo.models.ReLU(), "does not know ReLU"),
    }


@pytest.mark.parametrize("case", refusals(jax.random.key(0)))
def test_what_is_not_known_is_refused_by_name(case, getkey):
    network, message = refusals(getkey())[case]
    with pytest.raises(ValueError, match=message) as error:
        lipzoo.from_layers(network)
    assert "\n" not in str(error.value)


# --- PyTorch, by classes that are called as its own, and where it is installed by its own -----------------------------


class Parameter:
    """An array with the methods of a parameter."""

    def __init__(self, array, dtype=None):
        self.array, self.dtype = np.asarray(array, np.float32), dtype

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        if self.dtype is not None:
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        return self.array


class Layer:
    """What a module of PyTorch has."""

    training = False
    weight = bias = None

    def __init__(self, **fields):
        self._forward_hooks, self._forward_pre_hooks = {}, {}
        vars(self).update(fields)

    def __iter__(self):
        return iter(self.layers)  # pyright: ignore


def fake(name, **fields):
    return type(name, (Layer,), {"__module__": "torch.nn.modules.fake"})(**fields)


def test_a_sequence_of_torch_by_names_alone(getkey):
    rng = np.random.default_rng(0)
    w, b, gain = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=4)
    layers = [
        fake("Flatten", start_dim=1, end_dim=-1),
        fake("Linear", weight=Parameter(w), bias=Parameter(b)),
        fake("LayerNorm", weight=Parameter(gain), bias=Parameter(b), eps=0.5, normalized_shape=(4,)),
        fake("GELU", approximate="none"),
        fake("RMSNorm", weight=Parameter(gain), eps=None, normalized_shape=(4,)),
        fake("GELU", approximate="tanh"),
        fake("Dropout", p=0.5, training=False),
    ]
    model = lipzoo.from_layers(fake("Sequential", layers=layers))

    def network(x):
        y = w @ x + b
        y = (y - y.mean()) / np.sqrt(y.var() + 0.5) * gain + b
        y = np.array(jax.nn.gelu(y.astype(np.float32), approximate=False))
        y = y / np.sqrt(np.mean(y**2) + 2.0**-23) * gain
        return jax.nn.gelu(y.astype(np.float32))

    check(model, network, jax.random.normal(getkey(), (4, 6)))


BAD_LAYERS = {
    "Conv1d": (lambda: fake("Conv1d"), "does not know Conv1d"),
    "Dropout": (lambda: fake("Dropout", p=0.5, training=True), r"is a Dropout that drops: call \.eval\(\)"),
    "Flatten": (lambda: fake("Flatten", start_dim=0, end_dim=-1), "is a Flatten of some axes"),
    "hooks": (lambda: fake("ReLU", _forward_pre_hooks={0: print}), "was changed by hooks"),
    "forward": (lambda: fake("ReLU", forward=print), "was changed by hooks"),
    "bfloat16": (
        lambda: fake("Linear", weight=Parameter([[1]], "torch.bfloat16")),
        r"holds torch\.bfloat16: turn the network into float32",
    ),
    "norm": (lambda: fake("LayerNorm", eps=1e-5, normalized_shape=(2, 2)), r"over the shape \(2, 2\)"),
    "subclass": (lambda: type("Linear", (type(fake("Linear")),), {"__module__": "mine"})(), "does not know Linear"),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_what_is_not_known_of_torch_is_refused_by_name(case):
    make, message = BAD_LAYERS[case]
    with pytest.raises(ValueError, match=message):
        lipzoo.from_layers([make()])


def test_torch_is_not_imported():
    with open(of_torch.__file__) as file:
        assert "import torch" not in file.read()


@pytest.fixture
def nn():
    return pytest.importorskip("torch", reason="PyTorch is not installed").nn


def test_a_sequence_of_torch_itself(nn, getkey):
    import torch

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.LayerNorm(8, eps=1e-2),
        nn.GELU(),
        nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Identity()),
        nn.RMSNorm(8),
        nn.GELU(approximate="tanh"),
        nn.LayerNorm(8, bias=False),
        nn.Dropout(0.5),
        nn.Linear(8, 4),
        nn.RMSNorm(4, eps=0.1, elementwise_affine=False),
        nn.Tanh(),
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    with pytest.raises(ValueError, match=r"layer 8 is a Dropout that drops: call \.eval\(\) on the network"):
        lipzoo.from_layers(network)
    network.eval()
    model = lipzoo.from_layers(network)

    def run(x):
        with torch.no_grad():
            return network(torch.tensor(np.asarray(x))[None])[0].numpy()

    check(model, run, jax.random.normal(getkey(), (4, 6)))
    before = np.asarray(weights(model)[0].array)
    torch.nn.init.zeros_(network[1].weight)
    assert np.array_equal(weights(model)[0].array, before)
    assert before.any()


def test_networks_of_torch_that_compute_something_else_are_refused(nn):
    from torch.nn.utils import parametrizations

    class Net(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    spectral = parametrizations.spectral_norm(nn.Linear(2, 2))
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, arguments, output: 2 * output)
    for network, message in (
        (Net(nn.Linear(2, 2)), "does not know .*Net"),
        (nn.Sequential(spectral), "does not know ParametrizedLinear"),
        (nn.Sequential(hooked), "layer 0 is a Linear that was changed by hooks"),
        (nn.Sequential(nn.Conv1d(1, 1, 1)), r"does not know Conv1d \(layer 0\)"),
        (nn.Linear(2, 2).double(), "holds float64"),
        (nn.Linear(2, 2).bfloat16(), "holds torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            lipzoo.from_layers(network.eval())
    assert isinstance(lipzoo.from_layers(nn.Linear(2, 2)), Sequential)
