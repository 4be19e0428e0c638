"""A checkpoint's certificate, in memory and in the file `certificate.json`."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
from rich.console import Console

from lipzoo.certify.certificate import Certificate
from lipzoo.certify.tighten import STEPS
from lipzoo.data.download import cache_dir
from lipzoo.layers.base import silent
from lipzoo.recipe.largest_step import largest_step
from lipzoo.system.errors import UserError
from lipzoo.system.files import write_text
from lipzoo.system.progress import waiting
from lipzoo.system.version import VERSION
from lipzoo.theory.functions import Format, arithmetic
from lipzoo.theory.runs import Arithmetic
from lipzoo.train.load import Loaded, load
from lipzoo.train.reading import run_of


def certify(
    directory: Path, console: Console | None = None, tighten: int = STEPS, dtype: Format | None = None
) -> tuple[Certificate, str, Path | None]:
    """Certifies the newest checkpoint under `directory` and writes `certificate.json` into its run.

    It covers the rounding of a network that runs in `dtype`, by default in that in which it was trained. Shows on the
    console, by default on stderr, how far it is.

    **Returns:** the certificate, its JSON, and where that was written (None where the run cannot be written to, and of
    an exported file, which holds one).
    """
    loaded = load(directory)
    certificate = certificate_of(loaded, console, tighten, dtype)
    text = json.dumps(to_json(certificate, loaded), indent=2, allow_nan=False) + "\n"
    if loaded.path.is_file():
        return certificate, text, None
    path = run_of(loaded.path) / "certificate.json"
    try:
        write_text(path, text)
    except OSError as error:
        print(f"warning: cannot write {path} ({error.strerror})", file=sys.stderr)
        return certificate, text, None
    return certificate, text, path


def certificate_of(
    loaded: Loaded, console: Console | None = None, tighten: int = STEPS, dtype: Format | None = None
) -> Certificate:
    """The certificate of a loaded model, in the words of `certify`. Raises UserError if there is none."""
    _, window = loaded.recipe.data.unit
    runs_in = arithmetic_of(loaded, dtype)
    try:
        with waiting("certifying", None, console) as wait:
            found = Certificate.of(loaded.model, window=window, watch=wait.show, tighten=tighten, arithmetic=runs_in)
    except ValueError as error:
        raise UserError(f"the checkpoint {loaded.path} cannot be certified: {error}") from error
    step = largest_step(loaded.recipe)
    told = f" A step of its recipe moves at most: {step.told}." if math.isfinite(step.rms) else ""
    return dataclasses.replace(found, steps=told)


def arithmetic_of(loaded: Loaded, dtype: Format | None) -> Arithmetic | None:
    """A format, by default that in which a checkpoint's network was trained, and what this backend's functions do; None
    where a part of the network does not say how far it can be off, and no format is asked for.

    What GPUs call float32 are products of factors in tf32, unless JAX was told otherwise.
    """
    if dtype is None and silent(loaded.model):
        return None
    path = cache_dir() / "elementary.json"
    default: Format = loaded.recipe.training.model_dtype
    chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    precise = chosen in ("highest", "float32")
    if default == "float32" and jax.default_backend() == "gpu" and not precise:
        default = "tf32"
    try:
        return arithmetic(dtype or default, path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} holds no measurements of functions ({error}): delete it") from error


def to_json(certificate: Certificate, loaded: Loaded) -> dict[str, object]:
    """The certificate with what it is about: checkpoint, sha256 of the weights, recipe, version."""
    about = {
        "lipzoo": VERSION,
        "checkpoint": str(loaded.path.absolute()),
        "step": loaded.step,
        "weights_sha256": loaded.sha256,
        "weights_stored": loaded.stored,
        "recipe": loaded.recipe.to_json(),
        "largest_step": largest_step(loaded.recipe).to_json(),
    }
    return about | certificate.to_json()
