"""A vision transformer on CIFAR-10 with capped matrices."""

from lipzoo.cli.train import main
from lipzoo.data import DataConfig
from lipzoo.models import ViTConfig
from lipzoo.optim import OptimizerConfig
from lipzoo.recipe.constraint import ConstraintConfig
from lipzoo.recipe.recipe import Recipe
from lipzoo.recipe.training import TrainingConfig

RECIPE = Recipe(
    name="cifar_vit",
    model=ViTConfig(),
    data=DataConfig(data="cifar10", batch_size=256, random_flip=True, random_shift=2),
    optimizer=OptimizerConfig(optimizer="muon", lr=0.2, polynomial="polar-express"),
    constraint=ConstraintConfig(constraint="soft-cap", sigma_max=1.0),
    training=TrainingConfig(steps=2000, certify_at="36/255"),
)

if __name__ == "__main__":
    main(RECIPE)
