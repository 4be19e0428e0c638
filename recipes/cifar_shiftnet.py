"""A ShiftNet on CIFAR-10: orthogonal matrices of channels and shifts, trained for certified accuracy."""

from lipzoo.cli.train import main
from lipzoo.data import DataConfig
from lipzoo.models import ShiftNetConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

RECIPE = Recipe(
    name="cifar_shiftnet",
    model=ShiftNetConfig(),
    data=DataConfig(data="cifar10", batch_size=256, random_flip=True, random_shift=2),
    optimizer=OptimizerConfig(optimizer="muon", lr=0.25, polynomial="polar-express"),
    constraint=ConstraintConfig(constraint="stiefel", sigma_max=1.0, constraint_overrides=("head=spectral-normalize",)),
    training=TrainingConfig(steps=1560, temperature=70.0, margin=0.0286),
)

if __name__ == "__main__":
    main(RECIPE)
