"""The part of a recipe that describes a transformer."""

import dataclasses
import math
from typing import Literal

from lipzoo.config.fields import choice_refusal, options
from lipzoo.layers.activation import GELU_DIVISOR
from lipzoo.layers.normalization import NORM_EPSILON
from lipzoo.layers.stack import Remat
from lipzoo.theory.geometry import DENSE
from lipzoo.theory.weight import Weight

Granularity = Literal["head", "matrix"]
OF_GPT = (
    "norm",
    "residual",
    "qk_norm",
    "activation",
    "gelu_divisor",
    "residual_scale",
    "attention_scale",
    "rotary",
    "relative_bias",
)
"""Options that LipsFormer has no use for."""


@options
@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The part of a recipe that describes a transformer.

    The defaults are the Lipschitz GPT of Newhouse et al. 2025. `norm`, `residual`, `qk_norm`, `logit_softcap` and
    `activation` make the usual GPT of it, whose bound is huge: each normalization layer counts as 1/√epsilon.
    """

    architecture: Literal["gpt", "lipsformer"] = "gpt"
    """gpt, or the blocks of LipsFormer (Qi et al. 2023), whose temperature is --softmax-scale."""
    depth: int = 3
    """Blocks of attention and MLP."""
    width: int = 256
    """Features of a token."""
    heads: int = 4
    """Attention heads of a block."""
    granularity: Granularity = "head"
    """What caps and muon take for one matrix of q, k and v: each head, or the whole."""
    softmax_scale: float = 1.0
    """Factor s on the attention logits; counts as 1 + 2s in the bound, as s + √(1 + s²) with --no-rotary."""
    attention_scale: float = 1 / 3
    """Factor on the output of attention with convex residuals; 1/(1 + 2s) makes it 1-Lipschitz at unit norms."""
    relative_bias: int = 0
    """Distances for which each head learns a bias on its attention logits; costs nothing in the bound; 0 for none."""
    rotary: bool = True
    """Rotate queries and keys by their positions; without, the bound is sharper, and positions are told apart by
    --relative-bias alone."""
    residual_scale: float = 1.0
    """Residuals are (1-α)x + αf(x) with α = this over twice the blocks."""
    final_scale: float = 1.0
    """Fixed factor on the logits; counts in the bound."""
    blocks_mass: float = 32.0
    """Mass of all blocks together in the modular norm, where embedding and head have 1 each."""
    zero_init: bool = True
    """Start the head and the last matrix of every branch at zero."""
    norm: Literal["none", "rms", "layer"] = "none"
    """Normalization before every branch and before the head; costs a factor of 1/√epsilon each."""
    residual: Literal["convex", "plain"] = "convex"
    """(1-α)x + αf(x), or x + f(x)."""
    qk_norm: bool = False
    """Normalize the queries and keys of every head."""
    epsilon: float = NORM_EPSILON
    """ε of normalization layers."""
    activation: Literal["gelu", "maxmin", "relu2"] = "gelu"
    """Nonlinearity of the MLPs: GELU/c; maxmin, which keeps norms; or max(x, 0)², steeper the larger its input."""
    gelu_divisor: float = GELU_DIVISOR
    """c of GELU/c; at 1.1290 and above it is 1-Lipschitz."""
    logit_softcap: float = 0.0
    """c > 0 makes the logits c·tanh(z/c); 0 leaves them as they are."""
    window: int = 0
    """Tokens that attention looks back, itself among them; 0 for all."""
    window_stages: int = 1
    """Equal parts of the run in which the window grows to its full size; each is compiled anew."""
    separator: int = -1
    """Token that begins a document: tokens of different documents do not see one another; -1 for none."""
    remat: Remat = "products"
    """What the backward pass computes anew to save memory: nothing, all but products with weights, whole blocks."""

    def refusal(self) -> str | None:
        """Why there is no such model, or None."""
        if refusal := choice_refusal(self):
            return refusal
        if self.depth < 1 or self.heads < 1:
            return "--depth and --heads must be at least 1"
        if self.width < 2 or self.width % (2 * self.heads):
            return f"--width must be divisible by {2 * self.heads}, twice the --heads, got {self.width}"
        if not 0 < self.residual_scale <= 2 * self.depth:
            return f"--residual-scale must be positive and at most {2 * self.depth}, got {self.residual_scale}"
        if not 0 <= self.softmax_scale < math.inf:
            return f"--softmax-scale must be at least 0 and finite, got {self.softmax_scale}"
        if not 0 <= self.relative_bias <= 4096:
            return f"--relative-bias must lie between 0 and 4096, got {self.relative_bias}"
        for name in ("attention_scale", "final_scale", "blocks_mass", "epsilon", "gelu_divisor"):
            if not 0 < getattr(self, name) < math.inf:
                return f"--{name.replace('_', '-')} must be positive and finite, got {getattr(self, name)}"
        if not 0 <= self.logit_softcap < math.inf:
            return f"--logit-softcap must be at least 0 and finite, got {self.logit_softcap}"
        if self.window < 0 or not 1 <= self.window_stages <= max(self.window, 1):
            return f"--window must be at least 0, --window-stages at least 1 and at most --window {self.window}"
        return self._lipsformer_refusal()

    def window_at(self, progress: float) -> int:
        """The window after a fraction `progress` < 1 of the run; 0 where all tokens are seen."""
        return math.ceil(self.window * (math.floor(progress * self.window_stages) + 1) / self.window_stages)

    def _lipsformer_refusal(self) -> str | None:
        """LipsFormer has its own normalization, residuals and activation."""
        default = GPTConfig()
        for name in OF_GPT:
            if self.architecture == "lipsformer" and getattr(self, name) != getattr(default, name):
                return f"--{name.replace('_', '-')} is not for --architecture lipsformer"
        return None

    def first_norm(self, weight: Weight) -> float:
        """An upper bound of a fresh weight's norm: LipsFormer begins with σ₁ = 1, all others with norm 1."""
        hidden = self.architecture == "lipsformer" and weight.geometry == DENSE and weight.place == "hidden"
        return max(1.0, weight.rms_factor) if hidden else 1.0
