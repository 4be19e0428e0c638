"""The house: which room may import from which, and how large a file may grow."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "lipzoo").rglob("*.py"))
FLOORS = (
    {"system"},  # files, streams, signals: nothing of this library
    {"config", "theory"},  # what is true of flags; what is true of matrices and maps
    {"data", "devices", "report", "layers", "constraints", "optim"},  # none of these knows another
    {"models"},
    {"recipe"},
    {"train"},
    {"certify", "sample", "activations", "import_npz", "interop", "testing"},
    {"evaluate", "compare"},
    {"sweep"},
    {"frontier"},
    {"cli", "experiments", "export", "quantize", "zoo"},
    {"__init__"},  # what a notebook sees
)
"""Rooms, from the ground up. Each imports from floors below its own, and from itself."""
LONGEST = 250
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def room(path):
    return path.relative_to(ROOT / "lipzoo").parts[0].removesuffix(".py")


def imported(path):
    """The modules of this library that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "lipzoo")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lipzoo":
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (part if part in MODULES else node.module for part in parts)


def floor(name):
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def test_what_is_no_python_is_packaged():
    """An editable installation finds it all the same."""
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lipzoo"]
    others = [path for path in (ROOT / "lipzoo").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert set(others) == {path for pattern in packaged for path in (ROOT / "lipzoo").glob(pattern)}


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    for module in imported(path):
        assert module != "lipzoo", "the top imports everything"
        other = module.split(".")[1]
        assert other == room(path) or floor(other) < floor(room(path)), module


def test_no_module_imports_itself_by_way_of_others():
    edges, done = {name: set(imported(path)) for name, path in MODULES.items()}, set()

    def visit(module, above):
        assert module not in above, f"a circle: {' → '.join([*above, module])}"
        if module not in done:
            for other in edges[module]:
                visit(other, [*above, module])
            done.add(module)

    for module in edges:
        visit(module, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= LONGEST


FEW_USE = {"grain", "matplotlib", "orbax", "pyarrow", "pydantic", "scipy", "sklearn", "tiktoken"}


@pytest.mark.parametrize(("module", "absent"), [("lipzoo", FEW_USE | {"jax"}), ("recipes.cifar_mlp", FEW_USE)])
def test_what_few_use_is_imported_when_it_is_used(module, absent):
    """So that mistakes on a command line are told at once."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & set(done.stdout.split())
