"""The 145M GPT of Newhouse et al. 2025 (arXiv 2507.13338) on GPT-2 tokens of FineWeb, under a Lipschitz bound.

12 blocks of width 768 with 6 heads; 393,216 tokens a step; each group of weights has its own learning rate. --variant
names what is compared: `sigma1`, all norms at most 1 and the logits times 8, is at most 8-Lipschitz; `sigma8-*` and
`sigma16-*` allow larger norms; `baseline` is a usual GPT without a constraint, `lipsformer` that of Qi et al. 2023.
"""

import dataclasses

from lipzoo.cli.train import main
from lipzoo.constraints import ConstraintName
from lipzoo.data import TokensConfig
from lipzoo.models import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

MODEL = GPTConfig(depth=12, width=768, heads=6, window=1792, window_stages=14, separator=50256)


def bounded(name: str, constraint: ConstraintName, sigma_max: float, final_scale: float = 1.0) -> Recipe:
    """Lipschitz parts, with every weight under a cap."""
    return Recipe(
        name=f"gpt145m-{name}",
        model=dataclasses.replace(MODEL, final_scale=final_scale),
        data=TokensConfig(batch_size=192, seq_len=2048),
        optimizer=OptimizerConfig(
            lr=0.05,
            lr_overrides=("*=0.05", "head=0.005", "embedding=0.1"),
            beta1=0.95,
            momentum_warmup=300,
            nesterov=True,
            embedding_adam=True,
            schedule="trapezoid",
            msign_dtype="bfloat16",
        ),
        constraint=ConstraintConfig(constraint=constraint, sigma_max=sigma_max, seal=False),
        training=TrainingConfig(
            steps=1770, accum_steps=0, model_dtype="bfloat16", log_interval=10, val_interval=125, save_interval=250
        ),
    )


def free(name: str, model: GPTConfig) -> Recipe:
    """The same training without caps."""
    return dataclasses.replace(bounded(name, "none", 1.0), model=model)


BASELINE = dataclasses.replace(
    MODEL, norm="rms", residual="plain", qk_norm=True, softmax_scale=15.36, activation="relu2", logit_softcap=15.0
)
VARIANTS = {
    "sigma1": bounded("sigma1", "soft-cap", 1.0, final_scale=8.0),
    "sigma8-soft-cap": bounded("sigma8-soft-cap", "soft-cap", 8.0),
    "sigma8-hard-cap": bounded("sigma8-hard-cap", "hard-cap", 8.0),
    "sigma8-normalize": bounded("sigma8-normalize", "spectral-normalize", 8.0),
    "sigma16-normalize": bounded("sigma16-normalize", "spectral-normalize", 16.0),
    "baseline": free("baseline", BASELINE),
    "lipsformer": free("lipsformer", dataclasses.replace(MODEL, architecture="lipsformer", softmax_scale=12.0)),
}

RECIPE = VARIANTS["sigma1"]

if __name__ == "__main__":
    main(RECIPE, VARIANTS)
