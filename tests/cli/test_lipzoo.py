"""The command `lipzoo`, and how the tools name themselves in their help."""

import re
import sys
import types

import pytest

from lipzoo.cli.__main__ import TOOLS, main


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["lipzoo", *words])
    tools = {name for module, _ in TOOLS.values() for name in (module, f"{module}.__main__")}
    for name, module in list(sys.modules.items()):
        if (name.startswith("recipes.") or name in tools) and not hasattr(module, "__path__"):
            monkeypatch.delitem(sys.modules, name)  # As in a process of its own.
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, *capsys.readouterr()


def test_help_names_every_tool_and_recipe(monkeypatch, capsys):
    for words in ((), ("--help",)):
        status, out, _ = run(monkeypatch, capsys, *words)
        assert status == 0
        assert all(word in out for word in ("train", "cifar_mlp", "gpt145m", "certify", "sample", "import-npz"))


USAGES = [
    *(((name,), f"usage: lipzoo {name} ") for name in TOOLS),
    (("train", "digits_mlp"), "usage: lipzoo train digits_mlp "),
    (("train", "cifar-mlp"), "usage: lipzoo train cifar_mlp "),
]


@pytest.mark.parametrize(("words", "usage"), USAGES, ids=[" ".join(words) for words, _ in USAGES])
def test_every_tool_has_help(words, usage, monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, *words, "--help")
    assert status == 0
    assert out.startswith(usage)
    told = out.split("show this help message and exit")
    rows = [re.sub(r"\(default: [^)]*\)|[^\w ]", "", line).split() for line in "".join(told).splitlines()[4:]]
    assert sum(len(row) > 4 for row in rows) >= 1, "no more than the names of flags"


def test_a_recipe_trains(monkeypatch, capsys, tmp_path):
    flags = ("--steps", "2", "--width", "8", "--batch-size", "8", "--run-dir", str(tmp_path / "run"))
    status, out, _ = run(monkeypatch, capsys, "train", "digits_mlp", *flags)
    assert status == 0
    assert "certified" in out
    status, out, _ = run(monkeypatch, capsys, "certify", str(tmp_path / "run"), "--max-lipschitz", "1e-9")
    assert status == 1


MISTAKES = [
    (("trian",), "error: there is no tool 'trian'; choose from train, certify"),
    (("train",), "error: lipzoo train takes a recipe: cifar_convnet, cifar_mlp"),
    (("train", "--steps"), "error: lipzoo train takes a recipe"),
    (("train", "mnist"), "error: there is no recipe 'mnist'; choose from cifar_convnet"),
    (("certify", "/nowhere"), "error: /nowhere is not a directory"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_get_a_sentence(words, message, monkeypatch, capsys):
    status, _, err = run(monkeypatch, capsys, *words)
    assert status == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_stray_module_called_recipes_is_named(monkeypatch, capsys):
    stray = types.ModuleType("recipes")
    stray.__file__ = "/home/me/recipes.py"
    monkeypatch.setitem(sys.modules, "recipes", stray)
    status, _, err = run(monkeypatch, capsys, "train", "digits_mlp")
    assert status == 2
    assert err.startswith("error: /home/me/recipes.py hides the recipes that come with lipzoo: rename it")
