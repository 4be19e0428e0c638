"""The models of lipzoo in plain PyTorch: this file can be copied, and needs torch and safetensors alone.

model = load("model.safetensors")  # written by `lipzoo export`
logits = model(images)             # MLP: (…, pixels), in [0, 1], channels first; GPT: whole numbers, (time,)
"""

import json
import math
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

FUNCTIONS = {
    "relu": nn.functional.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "relu2": lambda x: nn.functional.relu(x) ** 2,
    "abs": lambda x: torch.cat([(half := x.tensor_split(2, -1))[0].abs(), half[1]], -1),
    "maxmin": lambda x: x.unflatten(-1, (-1, 2)).sort(dim=-1).values.flatten(-2),
    "groupsort": lambda x: x.unflatten(-1, (-1, 8)).sort(dim=-1).values.flatten(-2),
}
"""Activations by their names in recipes."""


def activation(name: str, divisor: float = 1.129) -> Callable[[Tensor], Tensor]:
    """A function by its name; GELU is divided by a constant."""
    if name == "gelu":
        return lambda x: nn.functional.gelu(x, approximate="tanh") / divisor
    return FUNCTIONS[name]


class MLP(nn.Module):
    """Linear layers with an activation between them; around the inner ones (1-α)x + αf(x); a factor on the logits."""

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        names = [f"layers.{index}" for index in range(config["depth"] - 1)] + ["head"]
        shapes = [state[f"{name}.weight"].shape for name in names]
        linears = [nn.Linear(inner, outer, bias=config["bias"]) for outer, inner in shapes]
        self.layers, self.head = nn.ModuleList(linears[:-1]), linears[-1]
        self.act, self.alpha, self.scale = activation(config["activation"]), config["residual"], config["final_scale"]

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            image = self.act(layer(x))
            x = (1 - self.alpha) * x + self.alpha * image if index and self.alpha else image
        return self.scale * self.head(x)


class Norm(nn.Module):
    """x/√(mean x² + ε), after the mean is subtracted if `center`; no learned gains."""

    def __init__(self, epsilon: float, center: bool = False):
        super().__init__()
        self.epsilon, self.center = epsilon, center

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.center else x
        return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + self.epsilon)


class CenterNorm(nn.Module):
    """γ ⊙ d/(d-1)·(x - mean x) + β, of LipsFormer."""

    def __init__(self, size: int):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * (x.shape[-1] / (x.shape[-1] - 1)) * self.gain + self.bias


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of positions, x of shape (time, heads, size): the pair (xᵢ, xᵢ₊ₛ) turns by t·10000^(-i/s)."""
    time, _, size = x.shape
    rates = 10_000.0 ** (-torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angle = (torch.arange(time, dtype=torch.float64)[:, None] * rates)[:, None].to(x.device)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class Block(nn.Module):
    """Causal attention and an MLP, each beside the identity."""

    def __init__(self, config: dict):
        super().__init__()
        width, lips = config["width"], config["architecture"] == "lipsformer"
        self.config, self.lips, size = config, lips, width // config["heads"]
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.act = activation(config["activation"], 1.0 if lips else config["gelu_divisor"])
        self.head_norm = Norm(config["epsilon"] / (size if lips else 1))
        self.convex = config["residual"] == "convex" and not lips
        self.alpha = config["residual_scale"] / (2 * config["depth"])
        self.scale = size**-0.5 if lips else config["attention_scale"] if self.convex else 1.0
        self.norms = nn.ModuleList(CenterNorm(width) if lips else norm_of(config) for _ in range(2))
        if lips:
            self.strengths = nn.ParameterList(torch.ones(width) for _ in range(2))
        if config["relative_bias"]:
            self.position = nn.Parameter(torch.zeros(config["heads"], config["relative_bias"]))

    def forward(self, x: Tensor, documents: Tensor | None) -> Tensor:
        for index, branch in enumerate((lambda y: self.attend(y, documents), self.mlp)):
            image = branch(self.norms[index](x))
            if self.lips:
                x = x + self.strengths[index] * image
            else:
                x = (1 - self.alpha) * x + self.alpha * image if self.convex else x + image
        return x

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))

    def attend(self, x: Tensor, documents: Tensor | None) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.config["heads"], -1)) for part in (self.q, self.k, self.v))
        if self.config["qk_norm"] or self.lips:
            q, k = self.head_norm(q), self.head_norm(k)
        v = self.head_norm(v) if self.lips else v
        q, k = (rotate(q), rotate(k)) if self.config["rotary"] else (q, k)
        place = torch.arange(len(x), device=x.device)
        distance = place[:, None] - place
        seen = (distance >= 0) & (distance < (self.config["window"] or math.inf))
        if documents is not None:
            seen &= documents[:, None] == documents
        scores = torch.einsum("qhs,khs->hqk", q, k) * (self.config["softmax_scale"] / q.shape[-1])
        if self.config["relative_bias"]:
            scores = scores + self.position[:, distance.clamp(0, self.config["relative_bias"] - 1)]
        joined = torch.einsum("hqk,khs->qhs", scores.masked_fill(~seen, -math.inf).softmax(-1), v)
        return self.scale * self.out(joined.flatten(1))


def norm_of(config: dict) -> nn.Module:
    return nn.Identity() if config["norm"] == "none" else Norm(config["epsilon"], config["norm"] == "layer")


class GPT(nn.Module):
    """Embedding → blocks → norm → head → scale, for one sequence of tokens: (time,) → (time, vocabulary)."""

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        self.config, vocabulary, width = config, len(state["head.weight"]), config["width"]
        self.embedding, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.blocks, self.norm = nn.ModuleList(Block(config) for _ in range(config["depth"])), norm_of(config)

    def forward(self, tokens: Tensor) -> Tensor:
        separator, cap = self.config["separator"], self.config["logit_softcap"]
        x, documents = self.embedding(tokens), (tokens == separator).cumsum(0) if separator >= 0 else None
        for block in self.blocks:
            x = block(x, documents)
        logits = self.config["final_scale"] * self.head(self.norm(x))
        return cap * torch.tanh(logits / cap) if cap else logits


class ShiftNet(nn.Module):
    """Patches → matrix → (some channels move by a pixel → matrix → activation)* → matrix, for square images."""

    def __init__(self, config: dict, state: dict[str, Tensor]):
        super().__init__()
        (width, inner), (classes, entries) = state["stem.weight"].shape, state["head.weight"].shape
        self.patch, self.rows, bias = config["patch"], math.isqrt(entries // width), config["bias"]
        self.act, self.wrap = activation(config["activation"]), config["border"] == "circular"
        self.moved, depth = round(width * config["shift"]) // 4, sum(name.endswith("mix.weight") for name in state)
        self.stem, self.head = nn.Linear(inner, width, bias=bias), nn.Linear(entries, classes, bias=False)
        blocks = (nn.ModuleDict({"mix": nn.Linear(width, width, bias=bias)}) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        n, p = self.rows, self.patch
        patches = x.reshape(-1, self.stem.in_features // p**2, n, p, n, p).permute(0, 2, 4, 3, 5, 1)
        y = self.stem(patches.flatten(3))
        for block in self.blocks:
            y = self.act(block["mix"](self.shift(y)))
        return self.head(y.flatten(1)).reshape(*x.shape[:-1], -1)

    def shift(self, x: Tensor) -> Tensor:
        still, *parts = x.split([x.shape[-1] - 4 * self.moved, *[self.moved] * 4], dim=-1)
        moves = ((1, 1), (1, -1), (2, 1), (2, -1))  # Down, up, right, left.
        moved = [part.roll(by, axis) for part, (axis, by) in zip(parts, moves, strict=True)]
        for part, (axis, by) in zip(moved, moves, strict=True):
            if not self.wrap:
                part.select(axis, 0 if by > 0 else -1).zero_()
        return torch.cat([still, *moved], dim=-1)


FAMILIES = {"mlp": MLP, "gpt": GPT, "shiftnet": ShiftNet}
"""By the `kind` of a recipe's model: what is called with its configuration and the state, and loads that."""
OFF = {"layer": "plain", "potential": 0.0}
"""Options that this file does not follow, and the only value of each that it takes."""


def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of modules from those of lipzoo. Rows of 8 bits have scales; blocks lie in one array."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(":scale"):
            continue
        scale, tensor = tensors.get(f"{name}:scale"), tensor.float()
        tensor = tensor if scale is None else tensor * scale
        if name.startswith("blocks."):
            for index, part in enumerate(tensor):
                found |= _of_block(f"blocks.{index}.", name.removeprefix("blocks."), part)
        elif name.endswith(".bias"):
            found[name] = tensor[:, 0]
        else:  # The rows of a table are matrices of one column.
            found[f"{name}.weight"] = tensor.flatten(1)
    return found


def _of_block(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One array of a block of a GPT. The heads of q, k and v lie one after the other, also where each is a matrix."""
    if name == "position":
        return {f"{prefix}position": tensor.flatten(1)}
    place, _, rest = name.partition(".")
    if rest == "bias":
        return {f"{prefix}{name}": tensor.flatten()}
    if rest:  # Of LipsFormer: attention.strength, mlp.center.gain.
        index, kind = int(place == "mlp"), rest.removeprefix("center.")
        target = f"strengths.{index}" if kind == "strength" else f"norms.{index}.{kind}"
        return {prefix + target: tensor.flatten()}
    return {f"{prefix}{name}.weight": tensor.flatten(0, -2)}


def build(config: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """The module of a recipe's model with these weights, to evaluate. Raises ValueError if there is no code for it."""
    if config["kind"] not in FAMILIES:
        raise ValueError(f"there is no PyTorch code for models of the family {config['kind']!r}")
    for name, only in OFF.items():
        if config.get(name, only) != only:
            raise ValueError(f"there is no PyTorch code for models with the option {name} {config[name]!r}")
    if config.get("residual") == "potential":
        raise ValueError("there is no PyTorch code for models with the option residual 'potential'")
    state = state_of(tensors)
    model = FAMILIES[config["kind"]](config, state)
    model.load_state_dict(state)
    return model.eval()


def load(path: str) -> nn.Module:
    """The module of a file of `lipzoo export`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors, recipe = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["recipe"]  # noqa: SIM118
    return build(json.loads(recipe)["model"], tensors)
