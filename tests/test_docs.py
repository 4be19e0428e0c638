"""What the documents say can be run: every command and every block of Python, and every entry point's --help.

Commands are made short by flags that `SHORT` adds, read real data where they are at hand and made-up or embedded ones
where not, and run in one process, in a folder that is not the checkout. What is not known how to run fails.
"""

import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest

from lipzoo.certify.certificate import Certificate
from lipzoo.models import AbstractModule
from lipzoo.sweep.ablation import compiled_quickly
from tests.conftest import FLAGS
from tests.data.test_tokens import shard_bytes

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REAL = Path(os.environ.get("LIPZOO_DATA_DIR", "~/.cache/lipzoo")).expanduser()
SETUP = ("python3 -m venv ", "ruff check . && ")
"""Beginnings of the lines that `.ci/run` itself takes from the documents and runs."""
IMAGES = "--batch-size 64 --width 16 --steps 4 --save-interval 4 --val-interval 4 --log-interval 2"
TEXT = (
    "--depth 2 --width 16 --heads 2 --batch-size 8 --seq-len 16 --accum-steps 2 --warmup-steps 0 "
    "--steps 4 --save-interval 4 --val-interval 4"
)
TOKENS = (
    "--depth 1 --width 16 --heads 2 --window 16 --window-stages 1 --batch-size 8 --seq-len 16 --val-tokens 300 "
    "--train-shards 1 --momentum-warmup 2 --model-dtype float32 --msign-dtype float32 --steps 4 --log-interval 2"
)
TOY = (
    "--steps 4 --num-blocks 1 --d-embed 8 --num-heads 2 --batch-size 2 --seq-len 64 --seeds 0 --optimizers adam "
    "--constraints none --aggregates exact"
)
SHORT = {
    "recipes.digits_mlp": IMAGES,
    "recipes.cifar_mlp": IMAGES,
    "recipes.cifar_shiftnet": f"{IMAGES} --size xs --depth 1 --width 8",
    "recipes.cifar_convnet": f"{IMAGES} --depth 1",
    "recipes.cifar_vit": f"{IMAGES} --depth 1 --width 8 --heads 2",
    "recipes.digits_convnet": f"{IMAGES} --depth 1",
    "recipes.shakespeare_gpt": TEXT,
    "recipes.gpt145m": TOKENS,
    "recipes.ebc_ablation": TOY,
    "recipes.paper_figures": "--size tiny --steps 4 --images 5",
    "lipzoo.sweep": "--steps 4 --width 8 --batch-size 64 --workers 1 --jobs 1/100",
    "lipzoo.frontier": "",
    "benchmarks.sweep_speed": "--recipes digits_mlp --arrangements 1x1 --steps 2 --out .",
    "lipzoo.certify": "",
    "benchmarks.deviation": "--examples 2",
    "lipzoo.certify.elementary": "--every 1048576",
    "lipzoo.compare": "--examples 20",
    "lipzoo.export": "",
    "lipzoo.zoo": "",
    "lipzoo.quantize": "--examples 20",
    "lipzoo.evaluate": "--steps 2 --restarts 1 --boundary-steps 4",
    "lipzoo.cli": "",
    "lipzoo.sample": "--length 5",
    "lipzoo.activations": "",
    "lipzoo.import_npz": "",
    "benchmarks.against": "--names mlp-adamw --rounds 1 --product 64",
    "benchmarks.cifar_step": "--rounds 1 --steps 2 --variants 'muon, none'",
    "benchmarks.cifar_table": "--steps 4 --optimizers muon --constraints none stiefel --out .",
    "benchmarks.images_table": "--names aol '--flags=--steps 4 --width 8 --save-interval 4 --val-interval 4' --out .",
    "benchmarks.ebc_step": "--steps 4 --batch-sizes 16 --num-blocks 1 --d-embed 8 --out .",
    "benchmarks.gpt145m": (
        "--rounds 1 --product 64 --rows 2 --accum-steps 1 --seq-len 16 --depth 1 --width 16 --heads 2 --budget 0 "
        "--out ."
    ),
    "benchmarks.gpt145m_table": "--variants sigma1 --out .",
    "benchmarks.shakespeare_step": "--rounds 1 --product 64 --batch-size 2 --seq-len 8 --accum-steps 1 --sampled 4",
    "benchmarks.shakespeare_table": (
        "--settings 'at most 2' --batch-size 4 --accum-steps 2 --steps 2 --out . "
        "'--flags=--width 16 --heads 2 --seq-len 64'"
    ),
    "benchmarks.tightness": "--starts 1 --time 4",
    "benchmarks.attacks": "--images 4 --steps 2 --restarts 1 --boundary-steps 4",
    "benchmarks.certified_table": "",
    "benchmarks.start": "--rounds 1 --length 40",
    "benchmarks.spikes": "--steps 2 --recipes cifar_mlp --runs spikes --out .",
    "benchmarks.ellipsoids": "--inputs 8 --sizes 4 2",
}
"""What is added to the command line of each module, after what the document says."""
EMBEDDED = {
    "recipes.cifar_mlp": ("cifar-10-batches-bin", "--data digits"),
    "recipes.cifar_shiftnet": ("cifar-10-batches-bin", "--data digits --patch 2"),
    "recipes.cifar_convnet": ("cifar-10-batches-bin", "--data digits --patch 1"),
    "recipes.cifar_vit": ("cifar-10-batches-bin", "--data digits --patch 2"),
    "recipes.shakespeare_gpt": ("tinyshakespeare", "--data pydoc"),
    "recipes.ebc_ablation": ("tinyshakespeare", "--data synthetic"),
    "benchmarks.ebc_step": ("tinyshakespeare", "--data synthetic"),
    "benchmarks.shakespeare_step": ("tinyshakespeare", "--data pydoc"),
}
"""What is added where these real data are not at hand."""
NEEDS = {
    "lipzoo.sweep cifar_mlp": "cifar-10-batches-bin",
    "recipes.cifar_shiftnet --data cifar100": "cifar-100-binary",
    "benchmarks.spikes": "cifar-10-batches-bin",
    "benchmarks.cifar_table": "cifar-10-batches-bin",
    "benchmarks.images_table": "cifar-10-batches-bin",
    "benchmarks.shakespeare_table": "tinyshakespeare",
    "lipzoo.sample runs/gpt145m": "gpt2_bpe",
}
"""What has no substitute, by beginnings of commands."""


class Command(NamedTuple):
    """One command of a document, as the shell would start it."""

    module: str
    arguments: tuple[str, ...]
    flags: str = ""
    """XLA_FLAGS before the command."""


# --- What the documents hold ---------------------------------------------------------------------------------------


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """Commands in running text; '… --flag' goes on from the command before it, brackets hold what may be left out."""
    found: list[str] = []
    for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
        span = re.sub(r" \[[^]]*\]", "", " ".join(span.split()))
        if re.match(r"(\w+=\S+ )*python -m ", span):
            found.append(span)
        elif span.startswith("… --"):
            found.append(span.replace("…", found[-1].split(" --")[0], 1))
    return found


SHELL = """
command_not_found_handle() { echo "not known how to run: $*" >&2; return 127; }
python() { printf '%s\\x1f' "${XLA_FLAGS-}" "$@"; printf '\\x1e'; }
export PATH=/nonexistent
unset XLA_FLAGS
"""
"""Here `python` tells how it is called, and no other program is found."""


def commands(script: str) -> list[Command]:
    """The commands of a block, read by bash itself: variables, quotes, comments. Fails on one that is not known."""
    lines = [line for line in script.splitlines() if not line.startswith(SETUP)]
    marked = "\n".join(lines).replace("<time>", "@newest")
    done = subprocess.run(["bash", "-ec", f"{SHELL}\n{marked}"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr}in:\n{script}"
    found = []
    for call in done.stdout.split("\x1e")[:-1]:
        flags, *words = call.split("\x1f")[:-1]
        known = words[0] == "-m" and words[1] in SHORT
        assert known, f"not known how to run, or to make short: python {' '.join(words)}"
        found.append(Command(words[1], tuple(words[2:]), flags))
    return found


def all_commands() -> list[Command]:
    """Those of all documents, each once, in their order."""
    found: list[Command] = []
    for text in (path.read_text() for path in DOCUMENTS):
        for script in [content for language, content in blocks(text) if language in ("", "bash", "sh")] + spans(text):
            found += commands(script)
    return list(dict.fromkeys(found))


def entry_points() -> list[str]:
    """Every module that is meant to be run."""
    files = [path for folder in ("lipzoo", "recipes", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    chosen = [path for path in files if 'if __name__ == "__main__"' in path.read_text()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in chosen]
    return [name.removesuffix(".__main__") for name in names]


# --- Where they run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder to run in, with a data cache of what is real and of made-up token shards."""
    folder = tmp_path_factory.mktemp("docs")
    data = folder / "data"
    data.mkdir()
    for path in REAL.glob("*"):
        (data / path.name).symlink_to(path)
    tokens = np.random.RandomState(0).randint(0, 50257, 2000)
    for name in ("fineweb10B", "wikipedia_gpt2", "my_tokens"):
        if not (data / name).exists():
            (data / name).mkdir()
            for part in ("train_000001", "val_000000"):
                (data / name / f"fineweb_{part}.bin").write_bytes(shard_bytes(tokens))
    shutil.copy(ROOT / "tests/fixtures/published_checkpoint.npz", folder / "file.npz")
    shutil.copy(ROOT / "lipzoo/zoo/digits-mlp.safetensors", folder / "model.safetensors")  # As an exported run.
    return folder


@pytest.fixture
def here(world, monkeypatch):
    """Inside that folder, with its data."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(world / "data"))
    with compiled_quickly():
        yield world


def start(command: Command) -> int:
    """Runs a module as `python -m` does, here. Returns its status."""
    package = (ROOT / command.module.replace(".", "/") / "__main__.py").exists()
    name = f"{command.module}.__main__" if package else command.module
    imported = sys.modules.pop(name, None)
    # Without jaxtyping's hook: beartype knows a type by its name, and confuses the `__main__` of two commands.
    finders = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("jaxtyping")]
    try:
        with (
            patch.object(sys, "argv", [command.module, *command.arguments]),
            patch.object(sys, "meta_path", finders),
        ):
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        if imported is not None:
            sys.modules[name] = imported
    return 0


def newest(run: str) -> str:
    """The newest run of this name; where no command before has made one, it is made."""
    folder = Path("runs") / run
    if not folder.exists():
        assert start(shortened(Command(f"recipes.{run.split('-')[0]}", ()))) == 0
    return str(max(folder.iterdir(), key=lambda path: path.stat().st_mtime))


def shortened(command: Command) -> Command:
    """The command with placeholders filled and the flags of SHORT."""
    filled = [re.sub(r"runs/([\w-]+)/@newest", lambda m: newest(m[1]), argument) for argument in command.arguments]
    filled = [argument.replace("/tmp/", f"{Path.cwd()}/") for argument in filled]
    if "--help" in filled:
        return command
    if command.module == "lipzoo.frontier" and not Path(filled[0]).exists():
        assert start(shortened(Command("lipzoo.sweep", (Path(filled[0]).name, "--lr", "0.1", "0.2")))) == 0
    if "--resume" in filled:  # All other settings come from the run.
        return command._replace(arguments=(*filled, "--steps", "6"))
    data, replacement = EMBEDDED.get(command.module, ("", ""))
    if command.module == "benchmarks.gpt145m_table":  # It hands these on to a recipe.
        filled = [f"{filled[0] if filled else '--flags=--data wikipedia_gpt2'} {TOKENS}"]
    flags = SHORT[command.module] + ("" if not data or (REAL / data).exists() else f" {replacement}")
    return command._replace(arguments=(*filled, *shlex.split(flags)))


# --- Tests ---------------------------------------------------------------------------------------------------------


def name_of(command: Command) -> str:
    return " ".join((command.module, *command.arguments))


def reads_real_data(command: Command) -> bool:
    return command.module in EMBEDDED or any(name_of(command).startswith(beginning) for beginning in NEEDS)


def marks(command: Command) -> list[pytest.MarkDecorator]:
    found = [pytest.mark.benchmark] if command.module.startswith("benchmarks.") else []
    return [*found, pytest.mark.real_data] if reads_real_data(command) else found


def distinct(command: Command) -> tuple[str, ...]:
    """What is left of a command but for the flags that `SHORT` sets anew: those of equal rests run alike."""
    words, rest = list(command.arguments), []
    set_anew = {word for word in shlex.split(SHORT[command.module]) if word.startswith("--")}
    while words:
        word = words.pop(0)
        if word not in set_anew or "--help" in command.arguments:
            rest.append(word)
            continue
        while words and not words[0].startswith("-"):
            words.pop(0)
    return command.module, *rest, command.flags


ALONE = {distinct(command): command for command in reversed(all_commands())}
COMMANDS = [pytest.param(command, marks=marks(command), id=name_of(command)) for command in reversed(ALONE.values())]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_documents_runs(command, here, capfd):
    for beginning, needed in NEEDS.items():
        if name_of(command).startswith(beginning) and not (REAL / needed).exists():
            pytest.skip(f"{needed} is not in LIPZOO_DATA_DIR")
    short = shortened(command)
    if command.flags:  # They count for a process as a whole.
        line = [sys.executable, "-m", short.module, *short.arguments]
        flags = {"XLA_FLAGS": f"{FLAGS} {command.flags}"}
        done = subprocess.run(line, env={**os.environ, **flags}, capture_output=True, text=True)
        status, told = done.returncode, done.stderr
    else:
        status, told = start(short), capfd.readouterr().err
    assert status == 0, told
    assert "Traceback" not in told


PYTHON = [
    content
    for path in DOCUMENTS
    for language, content in blocks(path.read_text())
    if language == "python" and not re.match(r"# \S+\.py\n", content)  # These are files: see tests/test_extending.py.
]


@pytest.mark.parametrize("content", PYTHON)
def test_a_block_of_python_runs_and_certifies_something(content, here):
    if "import torch" in content:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    filled = re.sub(r"runs/([\w-]+)/<time>", lambda match: newest(match[1]), textwrap.dedent(content))
    names: dict[str, object] = {}
    exec(compile(filled, "block", "exec"), names)
    models = [value for value in names.values() if isinstance(value, AbstractModule)]
    assert models
    for model in models:
        certificate = Certificate.of(model)
        assert 0 < certificate.lipschitz < math.inf
        assert "nan" not in str(certificate)


def test_every_block_is_of_a_kind_that_is_run():
    kinds = {language for path in DOCUMENTS for language, _ in blocks(path.read_text())}
    assert kinds <= {"", "bash", "sh", "python", "text"}, "text is for what is printed; all others are run"


def test_what_is_not_known_how_to_run_fails():
    for script in ("make all", "python setup.py", "python -m recipes.unknown", "pip install x"):
        with pytest.raises(AssertionError, match="not known how"):
            commands(script)


@pytest.mark.parametrize("module", entry_points())
def test_help_is_printed_and_nothing_else_is_done(module, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert start(Command(module, ("--help",))) == 0
    assert "usage" in capfd.readouterr().out.lower()
    assert not list(tmp_path.iterdir())
    assert module in SHORT


def test_every_flag_in_the_text_is_known(capfd):
    known = set()
    for module in entry_points():
        folded = module.startswith("recipes.") and module not in ("recipes.ebc_ablation", "recipes.paper_figures")
        start(Command(module, ("--help-all" if folded else "--help",)))
        known |= set(re.findall(r"--[a-z][\w.-]*", capfd.readouterr().out))
    text = "".join(path.read_text() for path in DOCUMENTS)
    told = {flag for span in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", span)}
    assert told - known <= {"--xla_force_host_platform_device_count", "--check", "--help", "--help-all"}
