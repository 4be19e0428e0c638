"""The models that ship: small, whole, and what their files say of them is so."""

import json
import sys

import numpy as np
import pytest

import lipzoo
from lipzoo.data import DataConfig
from lipzoo.system.errors import UserError
from lipzoo.system.terminal import guarded
from lipzoo.train import zoo
from lipzoo.train.exported import read_notes
from lipzoo.zoo.__main__ import _main, columns, listed

LARGEST = 12_000_000
NAMES = sorted(zoo.entries())


@pytest.fixture
def tool(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
        status = guarded(_main)
        return status, *capsys.readouterr()

    return run


def test_there_are_some_and_they_are_small():
    assert "digits-mlp" in NAMES
    assert sum(path.stat().st_size for path in zoo.entries().values()) < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_what_is_noted_of_a_model_is_so(name):
    """Of its weights by NumPy's SVD; of its accuracy where the data are embedded."""
    loaded, notes = lipzoo.load(f"zoo:{name}"), read_notes(zoo.entries()[name])
    certificate = notes["certificate"]
    assert certificate["weights_sha256"] == loaded.sha256
    assert notes["command"].startswith("python -m recipes.")
    found = lipzoo.Certificate.of(loaded.model, window=loaded.recipe.data.unit[1])
    assert certificate["certified"]["lipschitz"] <= found.lipschitz * (1 + 1e-9)
    assert certificate["layerwise"]["lipschitz"] == pytest.approx(float(found.layerwise.lipschitz), rel=1e-9)
    assert [row["norm"] for row in certificate["rows"]] == pytest.approx([row.norm for row in found.rows], rel=1e-9)
    data = loaded.recipe.data
    if isinstance(data, DataConfig):
        assert notes["evaluation"]["weights_sha256"] == loaded.sha256
        assert not notes["evaluation"]["violations"]
    if data.data == "digits":
        test = data.load(0).tests["val"]
        right = loaded.predict(test.input).argmax(-1) == test.label
        assert np.mean(right) == pytest.approx(notes["evaluation"]["clean_accuracy"], abs=1e-9)


def test_no_path_of_the_machine_is_in_a_file():
    for path in zoo.entries().values():
        notes = read_notes(path)
        told = [notes[part]["checkpoint"] for part in ("certificate", "evaluation") if part in notes]
        assert set(told) == {path.name}
        assert "/tmp/" not in json.dumps(notes)


def test_the_list_tells_all_of_them(tool):
    status, out, _ = tool()
    assert status == 0
    value = json.loads(tool("--json")[1])
    assert [entry["name"] for entry in value] == [f"zoo:{name}" for name in NAMES]
    for entry in value:
        assert f"{entry['name']}: {entry['command']}" in out
        if "evaluation" in entry:
            assert f"{entry['evaluation']['clean_accuracy']:.2%}" in out


def test_what_was_not_evaluated_has_empty_cells():
    one, bound = listed()[0], {"certified": {"log10_lipschitz": None}}
    other = {"name": "zoo:text", "bytes": 2_000_000, "certificate": bound}
    table = columns([one, other])
    assert table["clean"][1] == table["36/255"][1] == ""
    assert (table["L"][1], table["kB"][1]) == ("∞", "2,000")


def test_a_name_that_is_none_is_told_with_those_that_are():
    with pytest.raises(UserError, match=r"there is no zoo:none; choose from .*zoo:digits-mlp"):
        lipzoo.load("zoo:none")
    for name in ("zoo:", "zoo:../zoo/digits-mlp", "zoo:digits-mlp.safetensors"):
        with pytest.raises(UserError, match="choose from"):
            lipzoo.load(name)


def test_a_damaged_entry_is_told(tool, tmp_path, monkeypatch):
    content = bytearray(zoo.entries()["digits-mlp"].read_bytes())
    content[200] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    status, _, err = tool()
    assert status == 2
    assert "bad.safetensors is damaged" in err
    assert "install lipzoo again" in err
    with pytest.raises(UserError, match="is damaged"):
        lipzoo.load("zoo:bad")
