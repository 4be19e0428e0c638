"""A character GPT on tiny Shakespeare (--data pydoc needs no download) with a Lipschitz bound under 10.

Each head finds its characters by distance, which costs nothing in the bound, instead of by content (--softmax-scale 0).
"""

from lipzoo.cli.train import main
from lipzoo.data import TextConfig
from lipzoo.models import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

RECIPE = Recipe(
    name="shakespeare_gpt",
    model=GPTConfig(
        depth=2,
        softmax_scale=0.0,
        attention_scale=1.0,
        relative_bias=32,
        residual_scale=3.0,
        blocks_mass=8.0,
        activation="maxmin",
        remat="none",
    ),
    data=TextConfig(data="shakespeare"),
    optimizer=OptimizerConfig(optimizer="muon", lr=2.0),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=1.0, sigma_max_overrides=("head=9.9",)),
    training=TrainingConfig(steps=2000, accum_steps=0, log_interval=10, val_interval=250, save_interval=250),
)

if __name__ == "__main__":
    main(RECIPE)
