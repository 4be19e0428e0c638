"""The part of a recipe that describes a transformer."""

import dataclasses
import math
from typing import Annotated, ClassVar, Literal

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, NonNegative, Positive, Range, Whole
from lipzoo.data.config import Sizes
from lipzoo.layers.activation import GELU_DIVISOR
from lipzoo.layers.normalization import NORM_EPSILON
from lipzoo.layers.stack import Remat
from lipzoo.models.config import AbstractModelConfig
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
class GPTConfig(AbstractModelConfig):
    """The part of a recipe that describes a transformer.

    The defaults are the Lipschitz GPT of Newhouse et al. 2025. `norm`, `residual`, `qk_norm`, `logit_softcap` and
    `activation` make the usual GPT of it, whose bound is huge: each normalization layer counts as 1/√epsilon.
    """

    embeds: ClassVar[bool] = True
    architecture: Literal["gpt", "lipsformer"] = "gpt"
    """gpt, or the blocks of LipsFormer (Qi et al. 2023), whose temperature is --softmax-scale."""
    depth: Count = 3
    """Blocks of attention and MLP."""
    width: Annotated[int, Range(2)] = 256
    """Features of a token."""
    heads: Count = 4
    """Attention heads of a block."""
    granularity: Granularity = "head"
    """What caps and muon take for one matrix of q, k and v: each head, or the whole."""
    softmax_scale: NonNegative = 1.0
    """Factor s on the attention logits; counts as 1 + 2s in the bound, as s + √(1 + s²) with --no-rotary."""
    attention_scale: Positive = 1 / 3
    """Factor on the output of attention with convex residuals; 1/(1 + 2s) makes it 1-Lipschitz at unit norms."""
    relative_bias: Annotated[int, Range(0, 4096)] = 0
    """Distances for which each head learns a bias on its attention logits; costs nothing in the bound; 0 for none."""
    rotary: bool = True
    """Rotate queries and keys by their positions; without, the bound is sharper, and positions are told apart by
    --relative-bias alone."""
    residual_scale: Positive = 1.0
    """Residuals are (1-α)x + αf(x) with α = this over twice the blocks."""
    final_scale: Positive = 1.0
    """Fixed factor on the logits; counts in the bound."""
    blocks_mass: Positive = 32.0
    """Mass of all blocks together in the modular norm, where embedding and head have 1 each."""
    zero_init: bool = True
    """Start the head and the last matrix of every branch at zero."""
    norm: Literal["none", "rms", "layer"] = "none"
    """Normalization before every branch and before the head; costs a factor of 1/√epsilon each."""
    residual: Literal["convex", "plain"] = "convex"
    """(1-α)x + αf(x), or x + f(x)."""
    qk_norm: bool = False
    """Normalize the queries and keys of every head."""
    epsilon: Positive = NORM_EPSILON
    """ε of normalization layers."""
    activation: Literal["gelu", "maxmin", "relu2"] = "gelu"
    """Nonlinearity of the MLPs: GELU/c; maxmin, which keeps norms; or max(x, 0)², steeper the larger its input."""
    gelu_divisor: Positive = GELU_DIVISOR
    """c of GELU/c; at 1.1290 and above it is 1-Lipschitz."""
    logit_softcap: NonNegative = 0.0
    """c > 0 makes the logits c·tanh(z/c); 0 leaves them as they are."""
    window: Whole = 0
    """Tokens that attention looks back, itself among them; 0 for all."""
    window_stages: Count = 1
    """Equal parts of the run in which the window grows to its full size; each is compiled anew."""
    separator: int = -1
    """Token that begins a document: tokens of different documents do not see one another; -1 for none."""
    remat: Remat = "products"
    """What the backward pass computes anew to save memory: nothing, all but products with weights, whole blocks."""

    def conflict(self) -> str | None:
        """Which settings do not go together, or None."""
        if self.width % (2 * self.heads):
            return f"--width must be divisible by {2 * self.heads}, twice the --heads, got {self.width}"
        if self.residual_scale > 2 * self.depth:
            return f"--residual-scale must be at most {2 * self.depth}, twice the --depth, got {self.residual_scale}"
        if self.window_stages > max(self.window, 1):
            return f"--window-stages must be at most --window {self.window}, got {self.window_stages}"
        return self._lipsformer_conflict()

    def window_at(self, progress: float) -> int:
        """The window after a fraction `progress` < 1 of the run; 0 where all tokens are seen."""
        return math.ceil(self.window * (math.floor(progress * self.window_stages) + 1) / self.window_stages)

    def parameters(self, sizes: Sizes) -> int:
        """Without gains and biases."""
        return 12 * self.depth * self.width**2 + (sizes.inputs + sizes.classes) * self.width

    def scores(self, length: int) -> int:
        """All heads of a block."""
        return self.heads * length**2

    def _lipsformer_conflict(self) -> str | None:
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
