"""Transformers in plain PyTorch."""

import math

import torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

from .functions import activation


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
    """Rotary embedding of positions, x of shape (…, time, heads, size): the pair (xᵢ, xᵢ₊ₛ) turns by t·10000^(-i/s)."""
    time, _, size = x.shape[-3:]
    rates = 10_000.0 ** (-torch.arange(size // 2, dtype=torch.float64) / (size // 2))
    angle = (torch.arange(time, dtype=torch.float64)[:, None] * rates)[:, None].to(x.device)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class Block(nn.Module):
    """Attention and an MLP, each beside the identity, or with `residual` "potential" the MLP x - hWᵀφ(Wx).

    Attention looks back, unless `causal` is false: then at all tokens.
    """

    def __init__(self, config: dict):
        super().__init__()
        width, lips = config["width"], config["architecture"] == "lipsformer"
        self.config, self.lips, size = config, lips, width // config["heads"]
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.step = 1 / (2 * config["potential_cap"] ** 2) if config["residual"] == "potential" and not lips else 0.0
        self.up = nn.Linear(width, 4 * width, bias=False)
        if not self.step:
            self.down = nn.Linear(4 * width, width, bias=False)
        self.act = activation(config["activation"], 1.0 if lips else config["gelu_divisor"])
        self.head_norm = Norm(config["epsilon"] / (size if lips else 1))
        self.convex = config["residual"] != "plain" and not lips
        self.alpha = config["residual_scale"] / (2 * config["depth"])
        self.scale = size**-0.5 if lips else config["attention_scale"] if self.convex else 1.0
        self.norms = nn.ModuleList(CenterNorm(width) if lips else norm_of(config) for _ in range(2))
        if lips:
            self.strengths = nn.ParameterList(torch.ones(width) for _ in range(2))
        if config["relative_bias"]:
            self.position = nn.Parameter(torch.zeros(config["heads"], config["relative_bias"]))

    def forward(self, x: Tensor, documents: Tensor | None) -> Tensor:
        for index, branch in enumerate((lambda y: self.attend(y, documents), self.mlp)):
            if index and self.step:
                return x - self.step * nn.functional.linear(self.act(self.up(x)), self.up.weight.T)
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
        place = torch.arange(x.shape[-2], device=x.device)
        distance = place[:, None] - place
        seen = (distance >= 0) & (distance < (self.config["window"] or math.inf))
        seen |= not self.config.get("causal", True)
        if documents is not None:
            seen &= documents[:, None] == documents
        scores = torch.einsum("...qhs,...khs->...hqk", q, k) * (self.config["softmax_scale"] / q.shape[-1])
        if self.config["relative_bias"]:
            scores = scores + self.position[:, distance.clamp(0, self.config["relative_bias"] - 1)]
        joined = torch.einsum("...hqk,...khs->...qhs", scores.masked_fill(~seen, -math.inf).softmax(-1), v)
        return self.scale * self.out(joined.flatten(-2))


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
