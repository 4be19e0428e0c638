"""Modules of PyTorch give the logits of the models that they were made of. Skipped where it is not installed."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lipzoo
import lipzoo.interop
from lipzoo.data.config import Sizes
from lipzoo.export import export
from lipzoo.models import GPT, MLP, ConvNet, ConvNetConfig, GPTConfig, Linear, Sequential, ViT, ViTConfig
from lipzoo.models.families import FAMILIES, build
from lipzoo.models.shiftnet import ShiftNet, ShiftNetConfig
from lipzoo.theory.weight import Weight, map_weights, weights

CLOSE = 1e-5


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def random(model):
    """With noise on every weight, so that gains and strengths are not all alike."""
    keys = iter(jax.random.split(jax.random.key(7), 100))
    noisy = lambda w: w.with_array(w.array + 0.2 * jax.random.normal(next(keys), w.array.shape))  # noqa: E731
    return map_weights(noisy, model)


def check(torch, model, module, x):
    wanted = np.asarray(jax.vmap(model)(x) if x.dtype == jnp.float32 else model(x))
    with torch.no_grad():
        found = module(torch.tensor(np.asarray(x))).numpy()
    assert found.shape == wanted.shape
    assert abs(found - wanted).max() <= CLOSE * max(1.0, abs(wanted).max())


MLPS = [
    {},
    {"activation": "gelu", "residual": 0.3, "bias": True, "final_scale": 2.0, "depth": 4},
    {"activation": "tanh", "depth": 1, "bias": True},
    {"activation": "maxmin", "residual": 1.0},
    {"activation": "groupsort", "depth": 2},
    {"activation": "identity", "depth": 5, "residual": 0.5},
    {"potential": 0.7, "depth": 4, "bias": True},
    {"potential": 2.0, "activation": "tanh"},
    {"layer": "aol", "activation": "gelu", "bias": True, "final_scale": 2.0},
    {"layer": "bjorck", "activation": "maxmin", "residual": 0.5},
    {"layer": "cayley", "depth": 1},
    {"layer": "cpl", "depth": 4, "bias": True},
    {"layer": "sll", "activation": "tanh"},
    {"layer": "sandwich", "depth": 4, "bias": True},
]


@pytest.mark.parametrize("options", MLPS, ids=str)
def test_an_mlp_gives_the_same_logits(options, torch, getkey):
    model = random(MLP(20, 16, 10, zero_init=False, key=getkey(), **options))
    check(torch, model, lipzoo.to_torch(model), jax.random.normal(getkey(), (7, 20)))


GPTS = [
    {},
    {"norm": "rms", "residual": "plain", "qk_norm": True, "activation": "maxmin", "logit_softcap": 5.0},
    {"norm": "layer", "activation": "relu2", "granularity": "matrix", "relative_bias": 5, "rotary": False},
    {"window": 4, "separator": 3, "final_scale": 3.0, "gelu_divisor": 2.0},
    {"architecture": "lipsformer", "softmax_scale": 4.0},
    {"relative_bias": 3, "window": 5, "separator": 0, "softmax_scale": 8.0, "residual_scale": 2.0},
    {"residual": "potential", "activation": "relu", "potential_cap": 1.5},
]


@pytest.mark.parametrize("options", GPTS, ids=str)
def test_a_gpt_gives_the_same_logits(options, torch, getkey):
    model = random(GPT(11, GPTConfig(depth=2, width=16, heads=2, zero_init=False, **options), key=getkey()))
    check(torch, model, lipzoo.to_torch(model), jax.random.randint(getkey(), (13,), 0, 11))


SHIFTNETS = [
    {},
    {"activation": "abs", "border": "circular", "bias": False, "patch": 2, "shift": 1.0},
    {"activation": "groupsort", "depth": 1, "shift": 0.25},
    {"activation": "relu", "patch": 1, "head": "rows"},
]


@pytest.mark.parametrize("options", SHIFTNETS, ids=str)
def test_a_shiftnet_gives_the_same_logits(options, torch, getkey):
    config = ShiftNetConfig(**{"depth": 2, "width": 16, "zero_init": False, **options})
    model = random(ShiftNet(Sizes(192, 5, (3, 8, 8)), config, key=getkey()))
    module = lipzoo.to_torch(model)
    check(torch, model, module, jax.random.normal(getkey(), (3, 192)))
    assert module(torch.zeros(192)).shape == (5,)


CONVNETS = [
    {},
    {"border": "circular", "activation": "tanh", "bias": False, "kernel": 2, "potential_cap": 1.5},
    {"residual": "convex", "alpha": 0.3, "activation": "maxmin", "down": "average", "stages": 3, "patch": 1},
    {"residual": "none", "activation": "abs", "kernel": 4, "stages": 1, "head": "rows"},
    {"kernel": 4, "border": "circular", "residual": "convex", "stages": 1},
    {"kernel": 4, "stages": 1},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("options", CONVNETS, ids=str)
def test_a_convnet_gives_the_same_logits(options, torch, getkey):
    config = ConvNetConfig(**{"depth": 2, "width": 6, "zero_init": False, **options})
    model = random(ConvNet(Sizes(192, 5, (3, 8, 8)), config, key=getkey()))
    module = lipzoo.to_torch(model)
    check(torch, model, module, jax.random.normal(getkey(), (3, 192)))
    assert module(torch.zeros(192)).shape == (5,)
    assert module.state_dict()["stages.0.1.weight"].shape == (6, 6, config.kernel, config.kernel)


VITS = [{}, {"activation": "gelu", "softmax_scale": 4.0, "attention_scale": 0.2, "residual_scale": 2.0, "patch": 2}]


@pytest.mark.parametrize("options", VITS, ids=str)
def test_a_vit_gives_the_same_logits(options, torch, getkey):
    config = ViTConfig(**{"depth": 2, "width": 16, "heads": 2, "zero_init": False, **options})
    model = random(ViT(Sizes(192, 5, (3, 8, 8)), config, key=getkey()))
    module = lipzoo.to_torch(model)
    check(torch, model, module, jax.random.normal(getkey(), (3, 192)))
    assert module(torch.zeros(192)).shape == (5,)


FROM_RECIPES = {
    "convnet": ConvNetConfig(depth=1, width=4),
    "vit": ViTConfig(depth=1, width=8, heads=2, zero_init=False),
    "gpt": GPTConfig(depth=1, width=8, heads=2, residual="potential", activation="relu"),
}


@pytest.mark.parametrize("kind", FROM_RECIPES)
def test_options_that_files_hold_build_the_same_module(kind, torch, getkey):
    """As `load` does, which sees the recipe and the arrays alone."""
    from lipzoo.interop import torch_models

    config = FROM_RECIPES[kind]
    model = random(build(config, Sizes(192, 5, (3, 8, 8)), key=getkey()))
    tensors = {weight.name: torch.tensor(np.asarray(weight.array)) for weight in weights(model)}
    module = torch_models.build({"kind": kind, **dataclasses.asdict(config)}, tensors)
    text = kind == "gpt"
    check(torch, model, module, jax.random.randint(getkey(), (9,), 0, 5) if text else jnp.ones((2, 192)))


def test_images_must_be_square(torch, getkey):
    model = ConvNet(Sizes(96, 5, (3, 4, 8)), ConvNetConfig(depth=1, width=4, stages=1), key=getkey())
    with pytest.raises(ValueError, match="to_torch knows square images, and none of 4×8 pixels"):
        lipzoo.to_torch(model)


def test_a_file_is_read_by_the_code_that_can_be_copied(torch, digits_run, tmp_path, getkey):
    from lipzoo.interop import torch_models

    export(digits_run, tmp_path / "digits.safetensors", tighten=0)
    loaded, module = lipzoo.load(digits_run), torch_models.load(str(tmp_path / "digits.safetensors"))
    assert not module.training
    x = jax.random.uniform(getkey(), (5, 64))
    check(torch, loaded.model, module, x)
    check(torch, loaded.model, lipzoo.to_torch(loaded), x)
    assert set(module.state_dict()) == {"layers.0.weight", "layers.1.weight", "head.weight"}


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3", "bfloat16"])
def test_quantized_weights_are_read_too(kind, torch, digits_run, tmp_path, getkey):
    from lipzoo.interop import torch_models
    from lipzoo.quantize import quantize, waiting

    with waiting("", None) as wait:
        quantize(digits_run, tmp_path / "small", kind, 1, wait)
    export(tmp_path / "small", tmp_path / "small.safetensors", tighten=0)
    model = lipzoo.load(tmp_path / "small").model
    check(torch, model, torch_models.load(str(tmp_path / "small.safetensors")), jax.random.uniform(getkey(), (5, 64)))


def test_the_zoo_runs_in_torch(torch, getkey):
    from lipzoo.interop import torch_models
    from lipzoo.train.zoo import entries

    for name, path in entries().items():
        loaded = lipzoo.load(f"zoo:{name}")
        if loaded.recipe.to_json()["model"]["kind"] in torch_models.FAMILIES:
            size, text = loaded.recipe.data.sizes[0], isinstance(loaded.model, GPT)
            x = jax.random.randint(getkey(), (9,), 0, size) if text else jax.random.uniform(getkey(), (2, size))
            check(torch, loaded.model, torch_models.load(str(path)), x)


def test_the_folder_imports_nothing_of_this_library():
    folder = Path(lipzoo.interop.__file__).parent / "torch_models"
    files = sorted(folder.glob("*.py"))
    assert len(files) > 4
    for path in files:
        text = path.read_text()
        assert "import lipzoo" not in text
        assert "from lipzoo" not in text
        assert "import jax" not in text


def test_the_folder_can_be_copied(torch, tmp_path, getkey):
    shutil.copytree(Path(lipzoo.interop.__file__).parent / "torch_models", tmp_path / "copied_models")
    code = "import sys, copied_models; print(sorted(copied_models.FAMILIES), 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{sorted(FAMILIES)} False"


def test_families_that_torch_does_not_know_are_told(torch):
    from lipzoo.interop import torch_models

    assert set(torch_models.FAMILIES) <= set(FAMILIES)
    with pytest.raises(ValueError, match="no PyTorch code for models of the family 'other'"):
        torch_models.build({"kind": "other"}, {})
    with pytest.raises(ValueError, match=r"no PyTorch code for layers 'aol': lipzoo\.to_torch\(model\) computes"):
        torch_models.build({"kind": "mlp", "layer": "aol"}, {})


def test_models_that_are_not_known_are_told(getkey):
    linear = Linear(Weight(jax.random.normal(getkey(), (2, 2)), "w"))
    for value, name in ((Sequential([linear]), "Sequential"), (3, "int"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"to_torch knows MLP, GPT, ShiftNet, ConvNet, ViT, and no {name}"):
            lipzoo.to_torch(value)


def test_an_mlp_of_other_layers_is_told(torch, getkey):
    model = MLP(4, 4, 4, key=getkey())
    for place in (1, 2, 3):
        layers = list(model.body.layers)
        layers[place] = Sequential([layers[place]])
        other = eqx.tree_at(lambda m: m.body, model, Sequential(layers))
        with pytest.raises(TypeError, match="to_torch knows MLPs of matrices and activations"):
            lipzoo.to_torch(other)
    with pytest.raises(TypeError, match="to_torch knows sandwich layers that are not residual"):
        lipzoo.to_torch(MLP(4, 4, 4, layer="sandwich", residual=0.5, key=getkey()))


def test_without_torch_it_says_what_to_install(monkeypatch, getkey):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="to_torch needs PyTorch: pip install torch"):
        lipzoo.to_torch(MLP(2, 2, 2, key=getkey()))
