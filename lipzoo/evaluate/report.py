"""One page about one or several evaluated runs."""

import importlib.metadata
import math
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from lipzoo.data import DataConfig, Split
from lipzoo.evaluate.evaluation import Evaluation, fraction
from lipzoo.evaluate.radii import as_input
from lipzoo.report import page
from lipzoo.report.metrics import read_metrics
from lipzoo.report.pictures import Line, bars, figures, images, lines, picture, png, ranges
from lipzoo.system.version import VERSION
from lipzoo.theory.weight import Weight, weights
from lipzoo.train.reading import run_of

PACKAGES = ("jax", "jaxlib", "equinox", "numpy", "orbax-checkpoint")
EXAMPLES = 4
AMPLIFIED = 5
"""By what the change of an example is multiplied in its picture."""


def report(evaluations: Sequence[Evaluation], command: Sequence[str]) -> str:
    """The page. `command` is how it was made."""
    names = _names(evaluations)
    parts = [page.table(_overview(evaluations, names)), page.note(evaluations[0].summary)]
    parts += [figures(_curves(evaluations, names))]
    for evaluation, name in zip(evaluations, names, strict=True):
        parts += _about(evaluation, name)
    parts += [page.heading("Reproduce"), page.code(shlex.join(command)), page.note(_environment())]
    title = f"{names[0]}: what its bound buys" if len(names) == 1 else f"{len(names)} models: what their bounds buy"
    return page.page(title, parts)


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Each run by the end of its path; by more of it where two end alike."""
    paths = [run_of(evaluation.loaded.path).absolute() for evaluation in evaluations]
    short = [path.name for path in paths]
    return short if len(set(short)) == len(short) else ["/".join(path.parts[-2:]) for path in paths]


def _overview(evaluations: Sequence[Evaluation], names: Sequence[str]) -> dict[str, list[str]]:
    values = [evaluation.to_json() for evaluation in evaluations]
    percent = lambda x: f"{x:.1%}"  # noqa: E731
    columns = {"run": list(names), "clean": [percent(value["clean_accuracy"]) for value in values]}
    for index, epsilon in enumerate(evaluations[0].epsilons):
        columns[f"certified at {fraction(epsilon)}"] = [percent(v["certified_accuracy"][index]) for v in values]
    for key, name in (("local_certified_accuracy_of_first", "around each"), ("attacked_accuracy", "under attack")):
        for index, epsilon in list(enumerate(evaluations[0].epsilons))[:1]:
            if all(value.get(key) for value in values):
                columns[f"{name}, first images, {fraction(epsilon)}"] = [percent(v[key][index]) for v in values]
    columns["L (ℓ₂ → ℓ₂)"] = [f"{v['lipschitz_l2']:.4g}" if v["lipschitz_l2"] is not None else "∞" for v in values]
    return columns


def _curves(evaluations: Sequence[Evaluation], names: Sequence[str]) -> dict[str, Figure]:
    """Accuracy against ε, certified and attacked; probability; the distribution of radii."""
    most = 1.3 * max(max(e.epsilons) for e in evaluations)
    one, top = len(evaluations) == 1, min(1.0, 1.15 * max(e.clean for e in evaluations))
    drawn: list[Line] = []
    for color, (e, name) in enumerate(zip(evaluations, names, strict=True)):
        radius = np.where(e.radii.correct, e.radii.radius, 0.0)
        drawn.append(_survival("certified" if one else name, radius, most, color, "-"))
        if e.local is not None:
            drawn.append(_survival("around each" if one else "", e.best, most, color + 2 * one, "--"))
        if e.attacked is not None:
            drawn.append(
                _survival("under attack" if one else "", np.asarray(e.attacked.distance), most, color + one, ":")
            )
    title = "Accuracy: certified —, around each - -, attacked ···"
    told = {title: lines(drawn, title, "ε (ℓ₂, pixels in [0, 1])", "accuracy", limits=(0.0, top), right=most)}
    chances = [
        Line("" if one else name, [0.0, *e.epsilons], [_start(e), *e.attacked.probability.mean(0)], color, "-", "o")
        for color, (e, name) in enumerate(zip(evaluations, names, strict=True))
        if e.attacked is not None
    ]
    if chances:
        told["Mean probability of the true class under attack"] = lines(
            chances, "Probability of the true class under attack", "ε (ℓ₂, pixels in [0, 1])", "mean", limits=(0.0, 1.0)
        )
    for color, (e, name) in enumerate(zip(evaluations, names, strict=True)):
        values = e.radii.radius[e.radii.correct]
        told[f"Distribution of certified radii, {name}"] = bars(
            values, "Certified radii" + ("" if one else f": {name}"), "radius (ℓ₂)", "images", color
        )
    return told


def _start(evaluation: Evaluation) -> float:
    """The mean probability of the true class of the attacked images, unchanged."""
    assert evaluation.attacked is not None
    test = _test(evaluation)
    count = len(evaluation.attacked.distance)
    logits = evaluation.loaded.predict(test.input[:count])
    chance = jax.nn.softmax(evaluation.loaded.recipe.training.temperature * logits, axis=-1)
    return float(np.asarray(chance)[np.arange(count), test.label[:count]].mean())


def _test(evaluation: Evaluation) -> Split:
    return evaluation.loaded.recipe.data.load(evaluation.loaded.recipe.training.seed).tests["val"]


def _survival(name: str, distances: Float[np.ndarray, " n"], most: float, color: int, style: str) -> Line:
    """The fraction of distances above ε, for ε up to `most`."""
    grid = np.linspace(0, most, 200)
    ordered = np.sort(np.asarray(distances, np.float64))
    return Line(name, grid, 1 - np.searchsorted(ordered, grid, side="right") / len(ordered), color, style)


def _about(evaluation: Evaluation, name: str) -> list[str]:
    """What is known of one run."""
    certificate = evaluation.certificate
    parts = [page.heading(name), page.table(certificate.weight_columns, "Weights")]
    parts += [page.table(certificate.bound_columns, "Bounds"), page.note(certificate.told)]
    parts += [page.table(evaluation.columns, "Accuracy"), page.note(evaluation.summary)]
    drawn = {f"Singular values of each weight, {name}": _spectra(weights(evaluation.loaded.model))}
    if norms := _norms(run_of(evaluation.loaded.path)):
        drawn[f"Norms over training, {name}"] = norms
    if evaluation.tightness:
        rows = {row.name: (row.found, row.certified) for row in evaluation.tightness if math.isfinite(row.certified)}
        drawn[f"Tightness, {name}"] = ranges(rows, "Largest gain found, and certified", "L (RMS → RMS)")
        parts.append(page.table(evaluation.tightness_columns, "Tightness"))
    parts.append(figures(drawn))
    if (examples := _examples(evaluation)) is not None:
        parts.append(picture(png(examples), "Images, their nearest adversaries, and the change", 460))
    return parts


def _spectra(found: Sequence[Weight]) -> Figure:
    """Singular values in RMS → RMS units, largest first; dashed: the cap."""
    drawn = []
    for color, weight in enumerate(w for w in found if w.geometry.bounded and not w.geometry.single):
        array = np.asarray(weight.array).astype(np.float64)
        sigma = np.linalg.svd(array.reshape(-1, *array.shape[-2:])[0], compute_uv=False) * weight.rms_factor
        drawn.append(Line(weight.name, np.linspace(0, 1, len(sigma)), sigma, color))
        if math.isfinite(weight.cap):
            drawn.append(Line("", [0, 1], [weight.cap, weight.cap], color, "--"))
    return lines(drawn[:16], "Singular values (dashed: caps)", "rank, as a fraction", "σ (RMS → RMS)", right=1.0)


def _norms(run: Path) -> Figure | None:
    """Norms over training, from metrics.jsonl."""
    records = [record for record in read_metrics(run / "metrics.jsonl") if record.get("norms")]
    if not records:
        return None
    names = list(records[-1]["norms"])[:8]
    drawn = [
        Line(name, [r["step"] for r in records], [r["norms"].get(name, math.nan) for r in records], color)
        for color, name in enumerate(names)
    ]
    return lines(drawn, "Norms over training", "step", "norm (RMS → RMS)")


def _examples(evaluation: Evaluation) -> Figure | None:
    """Images that are classified as they are labelled, the nearest adversaries that were found, and the change."""
    found, data = evaluation.attacked, evaluation.loaded.recipe.data
    if found is None or not isinstance(data, DataConfig):
        return None
    chosen = np.flatnonzero(np.isfinite(found.distance) & (found.distance > 0))[:EXAMPLES]
    loaded = data.load(evaluation.loaded.recipe.training.seed)
    if not chosen.size:
        return None
    rows, names = [], []
    for index in chosen:
        image = as_input(loaded.test.input[index], loaded.white)
        near = found.nearest[index]
        shown = (image, near, 0.5 + AMPLIFIED * (near - image))
        rows.append([_as_picture(np.asarray(pixels), loaded.shape) for pixels in shown])
        names.append(f"at {found.distance[index]:.2f}\nproved {evaluation.best[index]:.2f}")
    return images(rows, names, ("image", "nearest adversary", f"change ×{AMPLIFIED}"))


def _as_picture(pixels: Float[np.ndarray, " n"], shape: Sequence[int]) -> Float[np.ndarray, "height width channels"]:
    channels_last = np.asarray(pixels, np.float64).reshape(shape).transpose(1, 2, 0)
    return np.repeat(channels_last, 3, axis=2) if channels_last.shape[2] == 1 else channels_last


def _environment() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    device = jax.devices()[0].device_kind
    return f"lipzoo {VERSION}, Python {platform.python_version()}, {versions}; {platform.machine()}, {device}."
