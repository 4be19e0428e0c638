"""Convolutional networks of Equinox and PyTorch as models of this library."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
from lipzoo.models import Conv2d
from lipzoo.theory.weight import weights
from tests.interop.test_from_layers import Parameter, check, fake, randomized


@pytest.fixture
def nn():
    return pytest.importorskip("torch", reason="PyTorch is not installed").nn


CONVOLUTIONS = {
    "same": {"kernel_size": 3, "padding": "SAME"},
    "same, even": {"kernel_size": 4, "padding": "SAME"},
    "same, lower": {"kernel_size": 2, "padding": "SAME_LOWER"},
    "same, strides": {"kernel_size": 3, "padding": "SAME", "stride": 2},
    "one": {"kernel_size": 3, "padding": 1, "groups": 2, "use_bias": False},
    "one, strides": {"kernel_size": 3, "padding": 1, "stride": 2},
    "two, strides": {"kernel_size": 5, "padding": 2, "stride": 3},
    "none": {"kernel_size": 3},
    "none, strides": {"kernel_size": (3, 2), "stride": 2},
    "patches": {"kernel_size": 2, "stride": 2},
    "a pixel of each": {"kernel_size": 1, "stride": 3},
    "oblong": {"kernel_size": (3, 1), "padding": (1, 0)},
    "uneven": {"kernel_size": 3, "padding": ((0, 2), (2, 0))},
    "little": {"kernel_size": 4, "padding": ((0, 1), (2, 0))},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "CIRCULAR"},
    "circular, strides": {"kernel_size": 3, "padding": 1, "stride": 2, "padding_mode": "CIRCULAR", "groups": 2},
    "circular, same": {"kernel_size": 2, "padding": "SAME", "padding_mode": "CIRCULAR"},
    "circular, less": {"kernel_size": 3, "padding": ((1, 0), (0, 1)), "padding_mode": "CIRCULAR"},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_of_equinox(case, getkey):
    """Images go in and come out with channels first."""
    layer = eqx.nn.Conv2d(2, 4, key=getkey(), **CONVOLUTIONS[case])
    model = lipzoo.from_layers(layer, image=(2, 6, 8))
    check(model, eqx.filter_jit(layer), jax.random.normal(getkey(), (3, 2, 6, 8)))


def test_little_is_lost_where_a_kernel_stands_in_a_larger_one(getkey):
    """The certificate is close to the norm of the Jacobian, by NumPy."""
    layer = eqx.nn.Conv2d(2, 3, 3, stride=2, padding=1, use_bias=False, key=getkey())
    model = lipzoo.from_layers(layer, image=(2, 12, 12))
    matrix = np.asarray(jax.jacobian(model)(jnp.zeros((2, 12, 12)))).reshape(-1, 288)
    certificate = lipzoo.Certificate.of(model)
    assert certificate.lipschitz * certificate.l2_factor <= 1.15 * np.linalg.norm(matrix, 2)


def network(getkey):
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 4, 3, padding=1, key=getkey()),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Sequential([eqx.nn.Conv2d(4, 4, 2, key=getkey()), eqx.nn.Lambda(jnp.tanh)]),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Dropout(0.5, inference=True),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.LayerNorm(4 * 1 * 2, eps=0.1),
            eqx.nn.MLP(8, 3, 5, 1, key=getkey()),
        ]
    )


def test_a_network_of_equinox(getkey):
    """7×11 pixels become 3×5 (one row and column are dropped), 2×4, and 1×2."""
    layers = randomized(network(getkey), getkey())
    model = lipzoo.from_layers(layers, image=(3, 7, 11))
    names = [weight.name for weight in weights(model)]
    assert names[:4] == ["0", "0.bias", "3.0", "3.0.bias"]
    xs = jax.random.normal(getkey(), (4, 3, 7, 11))
    check(model, eqx.filter_jit(layers), xs)
    for x in xs:  # Flat images work as well.
        np.testing.assert_array_equal(model(x.reshape(-1)), model(x))
    assert lipzoo.Certificate.of(model).lipschitz < 1e4


def test_networks_that_flatten_first_take_images_too(getkey):
    layers = [jnp.ravel, eqx.nn.Linear(12, 3, key=getkey())]
    x = jax.random.normal(getkey(), (3, 2, 2))
    model = lipzoo.from_layers(layers, image=(3, 2, 2))
    assert np.allclose(model(x), layers[1](x.reshape(-1)), atol=1e-5)


def refusals(key):
    conv = lambda **options: eqx.nn.Conv2d(3, 4, **{"kernel_size": 3, "padding": 1, "key": key, **options})  # noqa: E731
    ensemble = eqx.filter_vmap(lambda key: eqx.nn.Conv2d(3, 4, 3, key=key))(jax.random.split(key, 3))
    return {
        "dilation": (conv(dilation=2), r"the network is a Conv2d of dilation \(2, 2\): from_layers takes 1"),
        "strides": ([conv(stride=(1, 2))], r"layer 0 is a Conv2d of stride \(1, 2\)"),
        "reflect": ([conv(padding_mode="REFLECT")], "with padding_mode REFLECT: from_layers takes zeros and circular"),
        "full": ([conv(padding=2)], r"a 3×3 kernel with the padding \(\(2, 2\), \(2, 2\)\) and stride 1 on 8×6 pixels"),
        "empty": ([conv(kernel_size=9)], "at least one output"),
        "too large": ([conv(kernel_size=13, padding=6)], "a kernel of 13 does not fit an image of 8×6"),
        "odd": (
            [conv(kernel_size=4, padding=0, stride=4, padding_mode="CIRCULAR")],
            "a circular convolution of stride 4 does not divide 6 pixels",
        ),
        "channels": (
            [conv(), conv()],
            "1 takes one vector of 8×6×3 entries, but was given one vector of 8×6×4 entries",
        ),
        "ensemble": ([ensemble], "of an ensemble take one member"),
        "overlap": ([eqx.nn.MaxPool2d(3, 2)], r"layer 0 is a MaxPool2d of 3×3 pixels, stride \(2, 2\)"),
        "oblong": ([eqx.nn.AvgPool2d((2, 1), (2, 1))], "an?.AvgPool2d of 2×1 pixels"),
        "padded": ([eqx.nn.AvgPool2d(2, 2, 1)], "takes squares side by side, without padding"),
        "ceil": ([eqx.nn.AvgPool2d(4, 4, use_ceil=True)], "of 4×4 pixels that do not divide an image of 8×6"),
        "small": ([eqx.nn.AvgPool2d(7, 7)], "from_layers takes whole squares"),
        "linear": ([conv(), eqx.nn.Linear(6, 6, key=key)], "layer 1 is a Linear, but an image comes in: flatten it"),
        "norm": ([conv(), eqx.nn.LayerNorm(6)], "layer 1 is a LayerNorm, but an image comes in"),
        "MLP": (eqx.nn.MLP(6, 6, 6, 1, key=key), "the network is a MLP, but an image comes in"),
        "vector": ([jnp.ravel, conv()], "layer 1 is a Conv2d, but a vector of 144 entries comes in"),
        "size": ([jnp.ravel, eqx.nn.Linear(6, 6, key=key)], "1 takes one vector of 6 entries"),
    }


@pytest.mark.parametrize("case", refusals(jax.random.key(0)))
def test_what_is_not_the_same_is_refused_by_name(case, getkey):
    layers, message = refusals(getkey())[case]
    with pytest.raises(ValueError, match=message) as error:
        lipzoo.from_layers(layers, image=(3, 8, 6))
    assert "\n" not in str(error.value)


def test_convolutions_need_the_shape_of_images(getkey):
    for layer in (eqx.nn.Conv2d(3, 4, 3, key=getkey()), eqx.nn.MaxPool2d(2, 2)):
        with pytest.raises(ValueError, match=r"write from_layers\(network, image=\(channels, height, width\)\)"):
            lipzoo.from_layers([layer])
    for bad in ((3, 8), (3, 8, 0)):
        with pytest.raises(ValueError, match=r"image must be \(channels, height, width\)"):
            lipzoo.from_layers([layer], image=bad)


# --- PyTorch ----------------------------------------------------------------------------------------------------------

CONV = {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
MAX = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
AVG = {"kernel_size": 2, "stride": (2, 2), "padding": 0, "ceil_mode": False, "divisor_override": None}
NORM = {"running_mean": Parameter([0.5, -1, 2]), "running_var": Parameter([1, 4, 0.2]), "eps": 0.3, "training": False}


def test_a_network_of_torch_by_names_alone(getkey):
    rng = np.random.default_rng(0)
    kernel, bias, gain = rng.normal(size=(3, 2, 3, 3)), rng.normal(size=3), rng.normal(size=3)
    layers = [
        fake("Conv2d", weight=Parameter(kernel), bias=Parameter(bias), **CONV),
        fake("BatchNorm2d", weight=Parameter(gain), bias=Parameter(bias), **NORM),
        fake("Dropout2d", p=0.5, training=False),
        fake("MaxPool2d", **MAX),
        fake("BatchNorm2d", **NORM),
        fake("AvgPool2d", **AVG),
        fake("Flatten", start_dim=1, end_dim=-1),
    ]
    model = lipzoo.from_layers(fake("Sequential", layers=layers), image=(2, 4, 8))
    assert [weight.name for weight in weights(model)] == ["0", "0.bias", "4", "4.bias"]
    mean, variance = (np.array(NORM[name].numpy())[:, None, None] for name in ("running_mean", "running_var"))

    def network(x):
        padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        y = np.einsum("chwkl,ockl->ohw", windows, kernel) + bias[:, None, None]
        y = (y - mean) / np.sqrt(variance + 0.3) * gain[:, None, None] + bias[:, None, None]
        y = y.reshape(3, 2, 2, 4, 2).max((2, 4))
        y = (y - mean) / np.sqrt(variance + 0.3)
        return y.reshape(3, 1, 2, 2, 2).mean((2, 4)).ravel()

    check(model, network, jax.random.normal(getkey(), (4, 2, 4, 8)))


def test_a_batch_norm_becomes_part_of_the_convolution_before_it(getkey):
    """Also behind the pixels that are cut off; so the bound is that of the scaled kernel."""
    kernel, gain = np.eye(3).reshape(3, 3, 1, 1) * [[[[1e-3]], [[1]], [[1]]]] * np.ones((1, 1, 3, 3)), [1e3, 1, 1]
    conv = fake("Conv2d", weight=Parameter(kernel), **{**CONV, "padding": (0, 0)})
    statistics = {"running_mean": Parameter([0, 0, 0]), "running_var": Parameter([1, 1, 1])}
    norm = fake("BatchNorm2d", weight=Parameter(gain), **{**NORM, **statistics, "eps": 0.0})
    model = lipzoo.from_layers([conv, norm], image=(3, 5, 5))
    assert [weight.name for weight in weights(model)] == ["0", "0.bias"]
    x = jax.random.normal(getkey(), (3, 5, 5))
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(x), (3, 3), (1, 2))
    np.testing.assert_allclose(model(x), windows.sum((3, 4)), rtol=1e-5, atol=1e-5)
    certificate = lipzoo.Certificate.of(model)
    assert certificate.lipschitz * certificate.l2_factor <= 9.01


BAD_LAYERS = {
    "padding mode": ("Conv2d", {**CONV, "padding_mode": "reflect"}, "with padding_mode REFLECT"),
    "indices": ("MaxPool2d", {**MAX, "return_indices": True}, "MaxPool2d with dilation or return_indices"),
    "dilation": ("MaxPool2d", {**MAX, "dilation": (1, 2)}, "MaxPool2d with dilation or return_indices"),
    "divisor": ("AvgPool2d", {**AVG, "divisor_override": 3}, "AvgPool2d with divisor_override"),
    "training": ("BatchNorm2d", {**NORM, "training": True}, "is a BatchNorm2d that takes the statistics of batches"),
    "statistics": ("BatchNorm2d", {**NORM, "running_mean": None}, r"call \.eval\(\) on the network"),
    "vectors": ("BatchNorm1d", NORM, "is a BatchNorm1d, but an image comes in"),
    "dropout": ("Dropout2d", {"p": 0.5, "training": True}, "is a Dropout2d that drops"),
    "norm": ("GroupNorm", {}, "does not know GroupNorm"),
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_what_is_not_the_same_in_torch_is_refused_by_name(case):
    name, fields, message = BAD_LAYERS[case]
    layer = fake(name, weight=Parameter(np.ones((3, 3, 3, 3))), **fields)
    with pytest.raises(ValueError, match=message):
        lipzoo.from_layers([layer], image=(3, 4, 4))


def run(network):
    """On one example, by torch."""
    import torch

    def single(x):
        with torch.no_grad():
            return network(torch.tensor(np.asarray(x))[None])[0].numpy()

    return single


TORCH = {
    "same": {"kernel_size": 4, "padding": "same"},
    "valid": {"kernel_size": (2, 3), "padding": "valid", "bias": False},
    "strides": {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2},
    "none": {"kernel_size": 3},
    "circular": {"kernel_size": 3, "padding": (1, 1), "padding_mode": "circular"},
    "circular, same": {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
    "circular, strides": {"kernel_size": 5, "padding": 2, "stride": 2, "padding_mode": "circular"},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", TORCH)
def test_a_convolution_of_torch_itself(case, nn, getkey):
    layer = nn.Conv2d(2, 4, **TORCH[case])
    check(lipzoo.from_layers(layer, image=(2, 6, 8)), run(layer), jax.random.normal(getkey(), (3, 2, 6, 8)))


def test_a_network_of_torch_itself(nn, getkey):
    import torch

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(),
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, affine=False), nn.GELU()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, 3),
    )
    with torch.no_grad():
        for _ in range(3):  # Counts statistics.
            network(torch.randn(16, 3, 9, 9) * 2 + 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(ValueError, match="layer 1 is a BatchNorm2d that takes the statistics of batches"):
        lipzoo.from_layers(network, image=(3, 9, 9))
    model = lipzoo.from_layers(network.eval(), image=(3, 9, 9))
    assert isinstance(model.layers[1], Conv2d)
    check(model, run(network), jax.random.normal(getkey(), (3, 3, 9, 9)))
