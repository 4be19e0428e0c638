"""An MLP on CIFAR-10, the published setting: 3072-256-256-10, batch 512, Muon with the spectral soft cap."""

from lipzoo.cli import main
from lipzoo.data import DataConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe import ConstraintConfig, Recipe, TrainingConfig

RECIPE = Recipe(
    name="cifar_mlp",
    data=DataConfig(data="cifar10", batch_size=512),
    optimizer=OptimizerConfig(optimizer="muon", lr=0.23),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=3.0),
    training=TrainingConfig(steps=1953),
)

if __name__ == "__main__":
    main(RECIPE)
