"""The part of a recipe that describes the run."""

import dataclasses
import fractions
import math
from typing import Annotated, Literal

from lipzoo.config.fields import options
from lipzoo.config.ranges import Count, Fraction, NonNegative, Range, Seed, Whole
from lipzoo.devices.mesh import mesh_shape
from lipzoo.report.loggers import LoggerName
from lipzoo.theory.precision import Precision

LossName = Literal["cross-entropy", "annealed", "pairwise"]
AT_ONCE = 65_536
"""Tokens or images that a device works on at once, unless --accum-steps says how many parts there are."""
CPU_AT_ONCE = 512
"""As many tokens where the device is a CPU: what a block makes of them stays near its cores."""


@options
@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The part of a recipe that describes the run."""

    steps: Count = 2000
    """Optimizer steps."""
    loss: LossName = "cross-entropy"
    """cross-entropy; annealed, which leaves alone what is nearly certain; or pairwise, whose margins are in proportion
    to what certifies each pair of classes."""
    temperature: Annotated[float, Range(0, 1e6, open_low=True)] = 1.0
    """The training loss is the cross-entropy of temperature × logits; the model and its bound are without it."""
    margin: NonNegative = 0.0
    """What the training loss takes off the logit of the right class, so that it asks for so much more of it."""
    label_smoothing: Fraction = 0.0
    """Fraction of each label that is given to all classes alike."""
    annealing: Annotated[float, Range(1, 100)] = 5.0
    """γ of the annealed loss, which multiplies by (1 - p)^γ, p the probability of the right class."""
    certify_at: str = ""
    """Choose --temperature and --margin for the certified accuracy of images at this ℓ₂ distance, such as 36/255 (of
    pixels in [0, 1]), from the bound that the caps promise."""
    accum_steps: Whole = 1
    """Parts that a batch is computed in, one after the other, to save memory; 0 for as many as keep a device at 65,536
    tokens or images at once, and a CPU at 512 tokens, which is fastest there."""
    model_dtype: Precision = "float32"
    """Precision of forward and backward; weights and optimizer stay in float32. For float8_e4m3fn weights are rounded
    to it, each matrix scaled by a power of two, and computed with in bfloat16."""
    ema: Annotated[float, Range(0, 0.99999)] = 0.0
    """Keep a mean of the weights, too, in which each step counts this much of the next; 0 for none. It is validated,
    and in the end lies in ema/ in the run, certified."""
    max_step_kl: NonNegative = 0.0
    """Refuse learning rates at which one step could move the prediction for some input by more nats than this (KL), by
    what is proved before training; 0 for no limit."""
    fit_lr: bool = False
    """Lower --lr as far as --max-step-kl asks for."""
    measure_steps: bool = False
    """Log how far steps move logits and predictions of their own batch, at most: two more forward passes a step."""
    seed: Seed = 0
    """Seed of the first weights, the batches and random labels."""
    mesh: str = "1"
    """Devices: 8 share each batch, 4x2 also hold each weight in 2 parts (data × FSDP)."""
    log_interval: Count = 50
    """Steps between lines of metrics.jsonl."""
    val_interval: Count = 500
    """Steps between validations on the whole test split."""
    save_interval: Count = 500
    """Steps between checkpoints."""
    keep: Count = 2
    """Newest checkpoints to keep, beside the best."""
    loggers: tuple[LoggerName, ...] = ()
    """Where metrics go beside metrics.jsonl."""
    tensorboard: bool = False
    """As --loggers tensorboard: TensorBoard files in the run (pip install 'lipzoo[tensorboard]')."""
    wandb: bool = False
    """As --loggers wandb: Weights & Biases (pip install 'lipzoo[wandb]')."""

    @property
    def all_loggers(self) -> tuple[str, ...]:
        """Those asked for, by whichever flag, each once."""
        flags = {"tensorboard": self.tensorboard, "wandb": self.wandb}
        return tuple(dict.fromkeys([*self.loggers, *(name for name, given in flags.items() if given)]))

    def parts(self, batch_size: int, size: int, *, cpu: bool) -> int:
        """The parts of a batch of so many examples, each of so many tokens, or one image."""
        if self.accum_steps:
            return self.accum_steps
        rows, most = batch_size // self.devices, CPU_AT_ONCE if cpu and size > 1 else AT_ONCE
        fitting = (parts for parts in range(1, rows) if rows % parts == 0 and rows // parts * size <= most)
        return next(fitting, rows)

    @property
    def devices(self) -> int:
        """How many devices share each batch."""
        return math.prod(mesh_shape(self.mesh) or (1,))

    @property
    def epsilon(self) -> float | None:
        """`certify_at` as a number; None if it is none, or not positive."""
        try:
            value = float(fractions.Fraction(self.certify_at))
        except (ValueError, ZeroDivisionError, OverflowError):
            return None
        return value if 0 < value < math.inf else None

    def conflict(self, batch_size: int) -> str | None:
        """Which settings do not go together, or None."""
        if self.certify_at and self.epsilon is None:
            return f"--certify-at takes a number or a fraction such as 36/255, got {self.certify_at!r}"
        if mesh_shape(self.mesh) is None:
            return f"--mesh takes a number of devices such as 8, or data × FSDP such as 4x2, got {self.mesh!r}"
        if batch_size % (max(self.accum_steps, 1) * self.devices):
            parts = f"--accum-steps {self.accum_steps} × " if self.accum_steps else ""
            return f"--batch-size {batch_size} is not divisible by {parts}--mesh {self.mesh}"
        return None
