"""A convolutional network on scikit-learn's handwritten digits: embedded data, some seconds on a laptop."""

from lipzoo.cli.train import main
from lipzoo.data import DataConfig
from lipzoo.models import ConvNetConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

RECIPE = Recipe(
    name="digits_convnet",
    model=ConvNetConfig(depth=2, stages=2, width=16),
    data=DataConfig(data="digits", batch_size=128),
    optimizer=OptimizerConfig(optimizer="muon", lr=0.5),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=1.0),
    training=TrainingConfig(steps=500, val_interval=100, save_interval=100, log_interval=20, temperature=16.0),
)

if __name__ == "__main__":
    main(RECIPE)
