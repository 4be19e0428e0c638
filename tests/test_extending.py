"""docs/extending.md, done to a copy of the library: each part is one new file and one line in a table."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.constraints.seal import seal
from lipzoo.theory.weight import set_caps
from tests.conftest import svd_norm

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/extending.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE))
LINES = re.findall(r"[Ii]n `(\w+)` of\s`(\S+\.py)`:\s+```text\n(.*?)\n```", DOCUMENT, re.DOTALL)
"""(table, file, entry) of what is registered."""


def module_of(name):
    """The file of the document that defines a name."""
    path = next(
        (path for path, text in FILES.items() if re.search(rf"^(class |def )?{name}\b", text, re.MULTILINE)), ""
    )
    return path.removesuffix(".py").replace("/", ".")


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the library with all files and lines of the document."""
    copy = tmp_path_factory.mktemp("extended")
    for room in ("lipzoo", "recipes"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in FILES.items():
        assert not (copy / path).exists()
        (copy / path).write_text(text)
    for table, path, entry in LINES:
        text = (copy / path).read_text()
        names = sorted({node.id for node in ast.walk(ast.parse(f"{{{entry}}}")) if isinstance(node, ast.Name)})
        imports = [f"from {module_of(name)} import {name}" for name in names if module_of(name)]
        assert imports
        text, count = re.subn(rf"^{table}\b.*= {{$", lambda line: f"{line[0]}\n    {entry}", text, flags=re.MULTILINE)  # noqa: B023
        assert count == 1
        (copy / path).write_text(text.replace("\nfrom ", "\n" + "\n".join(imports) + "\nfrom ", 1))
    return copy


def python(folder, *words):
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_kind_of_part_has_an_example_of_one_file():
    assert {table for table, *_ in LINES} == {"CONSTRAINTS", "OPTIMIZERS", "SOURCES", "LOGGERS", "FAMILIES"}
    assert len(FILES) == len(LINES) + 2  # A layer needs no line, and a recipe is no part.


def test_a_geometry_of_ones_own_is_held_and_certified():
    names: dict[str, Any] = {}
    exec(compile(FILES["lipzoo/layers/circular.py"], "block", "exec"), names)
    kernel = names["kernel"]
    matrix = np.stack([np.roll(np.asarray(kernel.array)[:, 0], shift) for shift in range(9)], axis=1)
    norm, geometry = svd_norm(matrix), kernel.geometry
    assert norm <= geometry.exact_norm(np.asarray(kernel.array)) <= norm * (1 + 1e-9)
    assert norm <= float(geometry.gram_norm(kernel.array)) <= norm * (1 + 1e-4)
    steepest = np.asarray(geometry.steepest(kernel.array, None, 1.0))
    assert geometry.exact_norm(steepest) == pytest.approx(1, abs=1e-5)
    assert float((steepest * kernel.array).sum()) == pytest.approx(
        np.linalg.svd(matrix, compute_uv=False).sum() / 9, rel=1e-5
    )
    layer = names["CircularConvolution"](kernel)
    assert Certificate.of(seal(set_caps(layer, {"kernel": 0.5}))).caps_hold


def test_all_parts_work_together_from_the_command_line(extended):
    choices = ["--optimizer", "lion", "--constraint", "shrink", "--data", "stripes", "--loggers", "table"]
    sizes = ["--steps", "40", "--log-interval", "10", "--lr", "0.003", "--run-dir", "run"]
    told = python(extended, "recipes.digits_tower", *choices, *sizes, "--floors", "1")
    assert "0.up" in told
    names = {line.split("\t")[1] for line in (extended / "run/metrics.tsv").read_text().splitlines()}
    assert {"loss", "norm/head", "val_accuracy"} <= names
    (accuracy,) = re.findall(r"accuracy ([\d.]+)%", told)
    assert float(accuracy) > 90
    assert "entrance" in python(extended, "lipzoo.certify", "run")
    shown = python(extended, "recipes.digits_tower", "--help")
    assert [part for part in ("--floors", "lion", "stripes", "table") if part not in shown] == []
