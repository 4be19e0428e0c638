"""Published checkpoints: imported they give the published logits; whatever else a pickle may hold is refused."""

import datetime
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import lipzoo
from lipzoo.certify.certificate import Certificate
from lipzoo.import_npz.published import import_npz
from lipzoo.import_npz.reader import read_objects
from lipzoo.system.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = FIXTURES / "published_checkpoint.npz"
LOGITS = np.load(FIXTURES / "published_checkpoint_logits.npz")


def test_an_imported_model_gives_the_published_logits_and_a_certificate(tmp_path):
    paths = import_npz(PUBLISHED, tmp_path / "run")
    assert [path.name for path in paths] == ["0"]
    loaded = lipzoo.load(tmp_path / "run")
    np.testing.assert_allclose(jax.vmap(loaded.model)(LOGITS["tokens"]), LOGITS["logits"], atol=2e-6)
    certificate = Certificate.of(loaded.model)
    assert certificate.published is not None
    assert certificate.published.lipschitz < certificate.lipschitz
    assert loaded.recipe.constraint.constraint == "soft-cap"
    with pytest.raises(UserError, match="already holds a run"):
        import_npz(PUBLISHED, tmp_path / "run")


def write(path, **members):
    """An npz file with pickled members, as `numpy.savez` writes object arrays."""
    with zipfile.ZipFile(path, "w") as file:
        for name, value in members.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.array(value, dtype=object), allow_pickle=True)
            file.writestr(f"{name}.npy", stream.getvalue())
    return path


def test_plain_values_and_arrays_are_read_as_they_are(tmp_path):
    values = {"a": [1, 2.5, "x", None, True], 3: {"b": (1, 2)}, "c": np.arange(6, dtype=np.int16).reshape(2, 3)}
    values["d"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    got = read_objects(write(tmp_path / "x.npz", args=values))["args"]
    assert got["a"] == [1, 2.5, "x", None, True]
    assert got[3] == {"b": [1, 2]}
    np.testing.assert_array_equal(got["c"], values["c"])
    np.testing.assert_array_equal(got["d"], values["d"])


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), "builtins.print"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        (Path("x"), "pathlib"),
        (np.array(["2020"], "M8[D]"), "M8"),
    ],
)
def test_whatever_is_not_plain_is_refused_by_name_and_not_run(tmp_path, capsys, value, name):
    with pytest.raises(UserError, match=name):
        read_objects(write(tmp_path / "x.npz", args={"x": value}))
    assert "must not run" not in capsys.readouterr().out


def shared(depth):
    """Lists within lists that have 2^depth entries where each is copied."""
    value = [1.0]
    for _ in range(depth):
        value = [value, value]
    return value


GROWING = [
    (pickle.dumps(shared(200)), "holds the same list many times"),
    (pickle.dumps([[0.0] * 1000] * 1000), "holds the same list many times: 1,000,000 entries"),
    (b"\x80\x04]" + b"\x94" * (2 << 20) + b".", "holds more than 1,048,576 lists and the like"),
    (b"\x80\x04(" + b"]" * (2 << 20) + b"l.", "holds more than 1,048,576 lists and the like"),
    (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.", "is damaged or not a published checkpoint"),
    (b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", "is damaged or not a published checkpoint"),
]


@pytest.mark.parametrize(("pickled", "message"), GROWING)
def test_a_pickle_that_grows_is_refused_while_it_is_small(tmp_path, pickled, message):
    with pytest.raises(UserError, match=message):
        read_objects(write_pickle(tmp_path / "x.npz", pickled))


def write_pickle(path, pickled):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("args.npy", header.getvalue() + pickled)
    return path


def test_a_place_in_the_memo_far_ahead_takes_no_memory(tmp_path):
    """A reader that holds the memo as an array would reserve 32 GB for these eight bytes."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))"
    path = write_pickle(tmp_path / "x.npz", b"\x80\x04]r\xff\xff\xff\xfe.")
    code = f"import lipzoo.import_npz.reader as m, pathlib; {limit}; print(m.read_objects(pathlib.Path({str(path)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "{'args': []}\n"


def test_what_is_no_plain_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="no plain file"):
            read_objects(path)


def test_the_schedule_called_none_is_constant(tmp_path):
    objects = published_objects()
    objects["args"]["schedule"] = "none"
    import_npz(write(tmp_path / "x.npz", **objects), tmp_path / "run")
    assert lipzoo.load(tmp_path / "run").recipe.optimizer.schedule == "constant"


def published_objects():
    return read_objects(PUBLISHED)


CHANGES = [
    (lambda o: o["args"].pop("num_heads"), "lack num_heads"),
    (lambda o: o["args"].update(layernorm_substitute="tanh"), "layernorm_substitute = 'tanh' has no counterpart"),
    (lambda o: o["args"].update(project={"default": "magic"}), "constraint 'magic' has no counterpart"),
    (lambda o: o["args"].update(num_blocks=3), "14 matrices where 3 blocks make 20"),
    (lambda o: o["args"].update(d_embed=64), "has the shape"),
    (lambda o: o["args"].update(num_heads="many"), "not laid out as published"),
    (lambda o: o.pop("weights_checkpoint_0"), "holds no weights_checkpoint_0"),
    (lambda o: o["weights_checkpoint_0"].pop(3), "not laid out as published"),
    (lambda o: o.pop("args"), "it holds no args, the settings"),
    (lambda o: o.update(args=[1]), "it holds no args, the settings"),
    (lambda o: o["args"].update(num_heads=0), "--heads must be at least 1, got 0"),
    (lambda o: o["args"].update(softmax_scale=-0.3), "--softmax-scale must be at least 0"),
    (lambda o: o["args"].update(lr=10**400), "not laid out as published"),
    (lambda o: o["args"].update(zero_init=np.ones(2)), "zero_init"),
    (lambda o: o["args"].update(schedule="magic"), "schedule"),
    (lambda o: o["weights_checkpoint_0"].update({0: [1.0, 2.0]}), "not laid out as published"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_files_of_another_layout_are_refused_in_one_sentence(tmp_path, change, message):
    objects = published_objects()
    change(objects)
    with pytest.raises(UserError, match=message):
        import_npz(write(tmp_path / "x.npz", **objects), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        import_npz(tmp_path / "none.npz", tmp_path / "run")
    path = shutil.copy(PUBLISHED, tmp_path / "x.npz")
    content = bytearray(Path(path).read_bytes())
    content[5000] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        import_npz(Path(path), tmp_path / "run")
    Path(path).write_bytes(pickle.dumps({"args": 1}))
    with pytest.raises(UserError, match="damaged"):
        import_npz(Path(path), tmp_path / "run")


def test_an_alphabet_must_have_a_character_for_each_token(tmp_path):
    with pytest.raises(UserError, match="--alphabet has 2 characters, the file 17 tokens"):
        import_npz(PUBLISHED, tmp_path / "run", "ab")
