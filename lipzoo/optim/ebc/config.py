"""The part of a recipe that describes the trust region."""

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np

from lipzoo.config.fields import prefixed_options
from lipzoo.config.ranges import Count, NonNegative, Positive, Range, Whole
from lipzoo.optim.ebc.control import ControllerConfig, GuardConfig, SurrogateConfig
from lipzoo.theory.weight import weights

Aggregate = Literal["l1", "l2", "exact"]
PROBE_FRACTION = 32
"""The probe is this part of a batch unless told otherwise: per token, a JVP costs about as much as a training step."""


@prefixed_options
@dataclasses.dataclass(frozen=True)
class EBCConfig:
    """The part of a recipe that describes the trust region. Options of β are not for `exact`."""

    enable: bool = False
    """Limit every step's effect on the predictions."""
    target_kl: Positive = 0.05
    """δ: the KL divergence between predictions before and after the optimizer's step (decay and constraint not
    counted), in nats per token of the probe: the most that exact allows, what l1 and l2 aim below."""
    target_schedule: Literal["constant", "lr"] = "constant"
    """Whether δ stays, or goes with the square of the learning rate's schedule."""
    aggregate: Aggregate = "l1"
    """l1, l2: the published budgets over layers, estimates that keep no limit; exact: one derivative along the whole
    update, and a measurement that holds every step within the target."""
    update_every: Count = 20
    """Steps between measurements: of β for some layers, and of the applied KL."""
    probe_layers: Count = 2
    """Layers whose β is measured each time, in turn."""
    beta_ema: Annotated[float, Range(0, 1, open_high=True)] = 0.9
    """Weight of the old β in the moving average."""
    beta_huber_delta: NonNegative = 0.0
    """Largest change that a measurement may ask of β; 0 for no limit."""
    beta_full_sweep: Count = 200
    """Steps between measurements of all layers; in the first of these periods also at steps 0, 1, 2, 4, 8, …."""
    safety: Positive = 1.05
    """Factor on β."""
    center_logits: bool = True
    """Take the mean over classes off the change of each token's logits before its norm."""
    refine: Annotated[int, Range(0, 16, why="since each is a forward pass")] = 0
    """For exact: how often each step corrects c, up or down, by the divergence that it really causes, before it is held
    within the target; once costs a forward pass of the probe."""
    include_embed_out: bool = False
    """Count embedding and head as layers too; exact always takes the whole update."""
    probe_tokens: Whole = 0
    """Tokens (or images) of the batch that form the probe; 0 for 1/32 of the batch."""
    controller: ControllerConfig = ControllerConfig()
    guard: GuardConfig = GuardConfig()
    surrogate: SurrogateConfig = SurrogateConfig()

    def conflict(self, model: Any) -> str | None:
        """Which settings do not go together, or with this model, or None."""
        if not self.enable:
            return None
        if self.refine and self.aggregate != "exact":
            return "--ebc.refine is for --ebc.aggregate exact"
        if self.aggregate != "exact" and not layer_table(self, model):
            return "--ebc.aggregate l1 and l2 find no layer but embedding and head: add --ebc.include-embed-out"
        return self.controller.conflict(self.target_kl)

    def probe_shape(self, examples: int, tokens: int) -> tuple[int, int]:
        """Examples and tokens of each that the probe takes from a batch of so many examples of so many tokens."""
        wanted = self.probe_tokens or max(examples * tokens // PROBE_FRACTION, 1)
        length = min(wanted, tokens)
        return min(max(wanted // length, 1), examples), length


def layer_table(config: EBCConfig, params: Any) -> dict[str, tuple[int, int]]:
    """For each weight in scope, by name, its first layer and its number of layers; none for `exact`."""
    table: dict[str, tuple[int, int]] = {}
    first = 0
    for weight in weights(params):
        if config.aggregate != "exact" and (config.include_embed_out or weight.place == "hidden"):
            stacked = np.shape(weight.array)[: -weight.geometry.layer_axes]
            table[weight.name] = (first, stacked[0] if stacked else 1)
            first += table[weight.name][1]
    return table
