"""An MLP 3072-256-256-10 on CIFAR-10: Muon, soft cap 1.7, and a loss sharp enough to use the small bound well.

The published setting is --lr 0.23 --sigma-max 3 --temperature 1 --no-random-flip --random-shift 0.
"""

from lipzoo.cli.train import main
from lipzoo.data import DataConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

RECIPE = Recipe(
    name="cifar_mlp",
    data=DataConfig(data="cifar10", batch_size=512, random_flip=True, random_shift=2),
    optimizer=OptimizerConfig(optimizer="muon", lr=0.1, polynomial="polar-express"),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=1.7),
    training=TrainingConfig(steps=2000, temperature=32.0),
)

if __name__ == "__main__":
    main(RECIPE)
