"""Exported files: what is read back is what was written, and nothing else is taken for it."""

import errno
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save

import lipzoo
from lipzoo.export import export
from lipzoo.system.errors import UserError
from lipzoo.theory.weight import weights
from lipzoo.train import exported
from lipzoo.train.checkpoint import save_model
from lipzoo.train.digests import json_digest
from tests.recipe.test_recipe import make


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small network of fresh weights, exported."""
    folder, recipe = tmp_path_factory.mktemp("exported"), make(width=4, zero_init=False)
    save_model(folder / "run", 7, recipe.build_model(jax.random.key(0)), recipe)
    export(folder / "run", folder / "small.safetensors", tighten=0)
    return folder / "small.safetensors"


@pytest.fixture
def damaged(file, tmp_path):
    """The file with its content changed."""

    def change(content):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        return path

    return change


def header(content):
    """The JSON, and where the tensors begin."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), 8 + length


def with_header(content, value):
    _, start = header(content)
    text = json.dumps(value).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def with_metadata(content, **texts):
    """With other metadata, and the digest that these have; None leaves one out."""
    value, _ = header(content)
    metadata = {**value["__metadata__"], **texts}
    metadata = {n: text for n, text in metadata.items() if text is not None and n != "metadata_sha256"}
    return with_header(content, {**value, "__metadata__": {**metadata, "metadata_sha256": json_digest(metadata)}})


def refused(path):
    with pytest.raises(UserError) as error:
        lipzoo.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_file_is_the_run_that_it_was_made_of(file):
    one, other = lipzoo.load(file.parent / "run"), lipzoo.load(str(file))
    assert (other.sha256, other.step, other.recipe) == (one.sha256, 7, one.recipe)
    for a, b in zip(weights(one.model), weights(other.model), strict=True):
        assert (a.name, a.cap) == (b.name, b.cap)
        assert np.array_equal(a.array, b.array)
    notes = exported.read_notes(file)
    assert notes == exported.read(file).notes
    assert notes["certificate"]["weights_sha256"] == one.sha256
    assert notes["certificate"]["checkpoint"] == "small.safetensors"
    assert str(file.parent) not in json.dumps(notes)


def test_a_byte_that_has_changed_is_noticed_wherever_it_is(file, damaged):
    """Or it is one that says nothing: a file that is taken says the same."""
    content, (_, start), notes = file.read_bytes(), header(file.read_bytes()), exported.read_notes(file)
    sha = lipzoo.load(file).sha256
    places = [*range(8), *range(8, start, 29), *range(start, len(content), 97), len(content) - 1]
    taken, told = 0, []
    for bit, place in enumerate(places):
        changed = bytearray(content)
        changed[place] ^= 1 << bit % 8
        path = damaged(bytes(changed))
        try:
            loaded = lipzoo.load(path)
        except UserError as error:
            told.append(str(error))
            continue
        taken += 1
        assert place < start
        assert loaded.sha256 == sha
        assert exported.read_notes(path) == notes
    assert taken < 5
    assert not any("\n" in text for text in told)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 500, -1])
def test_a_file_that_was_cut_off_is_refused(length, file, damaged):
    assert "is damaged" in refused(damaged(file.read_bytes()[:length]))


def test_bytes_behind_the_end_are_refused(file, damaged):
    assert "is damaged" in refused(damaged(file.read_bytes() + b"x"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"recipe": None}, "its metadata lack recipe"),
        ({"weights_sha256": None, "certificate": None}, "its metadata lack certificate, weights_sha256"),
        ({"lipzoo": None}, "is a safetensors file that lipzoo did not write"),
        ({"schema": "2", "lipzoo": "9.9"}, "written by lipzoo 9.9, has the layout 2, which lipzoo"),
        ({"weights_sha256": "0" * 64}, "its certificate is about other weights"),
        ({"certificate": "{}"}, "it is not laid out as it was written"),
        ({"certificate": "[" * 5000}, "its brackets are nested more than"),
        ({"recipe": "{}"}, "cannot use the checkpoint"),
        ({"recipe": "3"}, "cannot use the checkpoint"),
        ({"step": "many"}, "is damaged"),
        ({"stored": "int4"}, "are stored as int4, which lipzoo"),
        ({"stored": "int8"}, "holds the weights of another model than that of its recipe: head"),
        ({"tensors_sha256": "{}"}, "it does not have the sha256 noted when it was written: head, layers.0, layers.1"),
    ],
)
def test_metadata_that_say_something_else_are_refused(texts, message, file, damaged):
    """Also where their digest is right."""
    assert message in refused(damaged(with_metadata(file.read_bytes(), **texts)))


def test_metadata_without_their_digest_are_refused(file, damaged):
    content = file.read_bytes()
    value, _ = header(content)
    del value["__metadata__"]["metadata_sha256"]
    assert "its metadata do not have the sha256" in refused(damaged(with_header(content, value)))
    del value["__metadata__"]
    assert "that lipzoo did not write" in refused(damaged(with_header(content, value)))


def test_weights_of_another_model_are_refused(file, damaged):
    recipe = make(width=8)
    told = refused(damaged(with_metadata(file.read_bytes(), recipe=json.dumps(recipe.to_json()))))
    assert "holds the weights of another model than that of its recipe: head, layers.0, layers.1" in told


def test_what_is_no_such_file_is_refused(file, damaged, tmp_path):
    assert "that lipzoo did not write" in refused(damaged(save({"w": np.zeros((2, 2), np.float32)})))
    assert "is damaged" in refused(damaged(b"PK\x03\x04 another kind of file"))
    content = save({"w": np.zeros(2)}, dict.fromkeys((*exported.NOTED, "schema"), "{}"))
    value, _ = header(content)
    content = with_metadata(with_header(content, value), schema="1")
    assert "holds F64 in w, which no weights of lipzoo" in refused(damaged(content))
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match="is not a directory"):
        lipzoo.load(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match=r"is not a directory: give a run, .* or an exported file"):
        lipzoo.load(tmp_path / "nothing.safetensors")


def test_a_header_of_any_length_is_not_read(damaged):
    for read in (lipzoo.load, exported.read_notes):
        with pytest.raises((UserError, exported.Damaged)):
            read(damaged((1 << 60).to_bytes(8, "little") + b"{}"))


def test_a_full_disk_loses_nothing(file, tmp_path, monkeypatch):
    out, write = tmp_path / "out.safetensors", Path.write_bytes
    out.write_bytes(b"what lay there")

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .* \(No space left on device\): what lay there is as it was"):
        export(file, out, tighten=0)
    assert out.read_bytes() == b"what lay there"
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(UserError, match=r"new.safetensors \(No space left on device\)$"):
        export(file, tmp_path / "new.safetensors", tighten=0)
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_not_there_is_told(file, tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*No such file or directory"):
        export(file, tmp_path / "nowhere" / "out.safetensors", tighten=0)
