"""The command `lipzoo`: one word a tool, and what comes after it as with `python -m`."""

import importlib
import pkgutil
import runpy
import sys
from collections.abc import Mapping

from lipzoo.system.errors import UserError
from lipzoo.system.terminal import STARTED_AS, guarded
from lipzoo.system.version import VERSION

TOOLS: Mapping[str, tuple[str, str]] = {
    "certify": ("lipzoo.certify", "certify the stored weights of a checkpoint"),
    "evaluate": ("lipzoo.evaluate", "clean, certified and attacked accuracy of classifiers"),
    "compare": ("lipzoo.compare", "prove how far two checkpoints can be from each other"),
    "quantize": ("lipzoo.quantize", "store weights in fewer bits, with a proof of what that changes"),
    "export": ("lipzoo.export", "write weights with their certificate to one safetensors file"),
    "zoo": ("lipzoo.zoo", "list the trained models that come with the library"),
    "sweep": ("lipzoo.sweep", "many runs of a recipe, each certified: sweep RECIPE --lr log:0.01:1:8 --seed 0 1"),
    "frontier": ("lipzoo.frontier", "draw what a sweep found against the certified bound, with the best settings"),
    "sample": ("lipzoo.sample", "generate text with a trained transformer"),
    "activations": ("lipzoo.activations", "measure the activations of a transformer"),
    "import-npz": ("lipzoo.import_npz", "import a published checkpoint"),
}


def main() -> None:
    """Runs the tool that is named, as `python -m` would, and exits with its status."""
    sys.exit(guarded(lambda: _run(sys.argv[1:])))


def _run(words: list[str]) -> int:
    tool, *rest = words or ["--help"]
    if tool in ("-h", "--help"):
        print(_help())
        return 0
    if tool == "--version":
        print(f"lipzoo {VERSION}")
        return 0
    if tool == "train":
        if not rest or rest[0].startswith("-"):
            raise UserError(f"lipzoo train takes a recipe: {', '.join(_recipes())}")
        name = rest.pop(0).replace("-", "_")
        if name not in _recipes():
            raise UserError(f"there is no recipe {name!r}; choose from {', '.join(_recipes())}")
        return _start(f"lipzoo train {name}", f"recipes.{name}", rest)
    if tool not in TOOLS:
        raise UserError(f"there is no tool {tool!r}; choose from train, {', '.join(TOOLS)}")
    return _start(f"lipzoo {tool}", TOOLS[tool][0], rest)


def _help() -> str:
    rows = {
        "train RECIPE": f"train and certify: {', '.join(_recipes())}",
        **{n: text for n, (_, text) in TOOLS.items()},
    }
    lines = [f"  {name:14} {text}" for name, text in rows.items()]
    return "\n".join(["usage: lipzoo TOOL ...", "", *lines, "", "Each has its own --help."])


def _recipes() -> list[str]:
    """The recipes that come with the library. Raises UserError if another module called so hides them."""
    recipes = importlib.import_module("recipes")
    found = sorted(name for _, name, _ in pkgutil.iter_modules(getattr(recipes, "__path__", [])))
    if "digits_mlp" not in found:
        raise UserError(
            f"{recipes.__file__} hides the recipes that come with lipzoo: rename it, or go to another folder"
        )
    return found


def _start(program: str, module: str, arguments: list[str]) -> int:
    sys.argv = [program, *arguments]
    STARTED_AS.append(program)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)  # So that help is found in the module's source.
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        return end.code
    finally:
        STARTED_AS.pop()
    return 0


if __name__ == "__main__":
    main()
