"""A convolutional network on CIFAR-10: potential residuals of convolutions, trained for certified accuracy."""

from lipzoo.cli.train import main
from lipzoo.data import DataConfig
from lipzoo.models import ConvNetConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

RECIPE = Recipe(
    name="cifar_convnet",
    model=ConvNetConfig(depth=4, stages=2, width=64, patch=4),
    data=DataConfig(data="cifar10", batch_size=256, random_flip=True, random_shift=2),
    optimizer=OptimizerConfig(optimizer="muon", lr=0.5, polynomial="polar-express"),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=1.0),
    training=TrainingConfig(steps=1560, temperature=70.0, margin=0.0286),
)

if __name__ == "__main__":
    main(RECIPE)
