"""A recipe trained, and what was stored of it certified and drawn."""

from pathlib import Path

from rich.console import Console

from lipzoo.certify.run import certify
from lipzoo.evaluate.curve import prove
from lipzoo.recipe.recipe import Recipe
from lipzoo.theory.numbers import format_power
from lipzoo.theory.weight import weights
from lipzoo.train import run as runs
from lipzoo.train.checkpoint import load, save_model
from lipzoo.train.contents import note_recipe


def train(recipe: Recipe, run: Path, *, resume: bool) -> int:
    """Trains a recipe in the directory `run` and certifies the last checkpoint (see `lipzoo.train.run.train`)."""
    return runs.train(recipe, run, resume=resume, finish=finish, prove=prove)


def finish(recipe: Recipe, run: Path, console: Console) -> None:
    """Certifies what was stored, and draws the curves."""
    from lipzoo.report.ebc_plots import plot_ebc  # matplotlib is slow to import, and the first step need not wait.
    from lipzoo.report.plots import plot_run

    certificate, _, path = certify(run, console)
    console.print(certificate)
    model = recipe.abstract_model()
    caps = {weight.name: weight.cap for weight in weights(model)}
    bound = format_power(certificate.certified.log10_lipschitz)
    picture = plot_run(run, caps, f"{recipe.name}: certified Lipschitz bound {bound}")
    console.print(f"wrote {path} and {picture}", soft_wrap=True)
    if recipe.ebc.enable:
        plot_ebc(run, recipe.name)
    if recipe.training.ema:
        _finish_average(recipe, run, console)


def _finish_average(recipe: Recipe, run: Path, console: Console) -> None:
    """Writes the mean of the weights as a run of its own, which every tool takes, and certifies it."""
    average, folder = load(run, item="average"), run / "ema"
    if not (folder / "checkpoints" / str(average.step)).exists():
        folder.mkdir(exist_ok=True)
        note_recipe(folder, recipe)
        save_model(folder, average.step, average.model, recipe)
    certificate, _, path = certify(folder, console)
    bound = format_power(certificate.certified.log10_lipschitz)
    console.print(f"the mean of the weights: certified Lipschitz bound {bound}; wrote {path}", soft_wrap=True)
