"""What Ellipsotope-Budgeted Clipping is worth: optimizers, constraints, budgets, δ and learning rates, run by run.

    python -m recipes.ebc_ablation --data synthetic            # seconds: a toy GPT on a small language
    python -m recipes.ebc_ablation --data shakespeare          # the grid of all settings given
    python -m recipes.ebc_ablation --data shakespeare --auto   # finds learning rates and δ itself

`--auto` is the published protocol: the learning rate of least loss without EBC; for each budget the δ that clips a
given fraction of its steps; then multiples of that learning rate, with and without EBC, over all seeds. A run that is
in the folder already is not run again, so an ablation that was stopped goes on where it was.
"""

import sys

from lipzoo.experiments.ebc_ablation import ablate
from lipzoo.experiments.ebc_grid import Ablation, Source
from lipzoo.system.terminal import guarded

DEFAULTS: dict[Source, Ablation] = {
    "shakespeare": Ablation(data="shakespeare"),
    "synthetic": Ablation(
        data="synthetic",
        steps=100,
        seq_len=32,
        num_blocks=1,
        d_embed=32,
        num_heads=2,
        optimizers=("adam", "muon"),
        constraints=("none", "soft-cap"),
        aggregates=("exact",),
        lr_scales=(1.0,),
        seeds=(0,),
        adam_lr=0.04,
        muon_lr=0.5,
    ),
}

if __name__ == "__main__":
    sys.exit(guarded(lambda: ablate(sys.argv[1:], DEFAULTS, __doc__)))
