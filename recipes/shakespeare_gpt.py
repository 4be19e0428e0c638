"""A character GPT on tiny Shakespeare (--data pydoc needs no download): 2.4M parameters, caps and Muon per head."""

from lipzoo.cli import main
from lipzoo.data import TextConfig
from lipzoo.models import GPTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe import ConstraintConfig, Recipe, TrainingConfig

RECIPE = Recipe(
    name="shakespeare_gpt",
    model=GPTConfig(),
    data=TextConfig(data="shakespeare"),
    optimizer=OptimizerConfig(optimizer="muon", lr=1.0),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=1.0),
    training=TrainingConfig(steps=2000, accum_steps=8, log_interval=10, val_interval=250, save_interval=250),
)

if __name__ == "__main__":
    main(RECIPE)
