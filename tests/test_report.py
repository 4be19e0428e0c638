"""What a run tells besides the terminal: TensorBoard, Weights & Biases, and reading metrics back."""

import sys

import pytest

from lipzoo.errors import UserError
from lipzoo.loop import train
from lipzoo.report import flat, read_metrics
from tests.conftest import SMALL_RUN
from tests.test_recipe import make


def test_tensorboard_files_hold_the_metrics(tmp_path):
    from tensorboardX.proto.event_pb2 import Event  # Records of its file: length, checksum, event, checksum.

    run = tmp_path / "run"
    assert train(make(**{**SMALL_RUN, "tensorboard": True}), run, resume=False) == 0
    (file,) = (run / "tensorboard").iterdir()
    data, place, tags = file.read_bytes(), 0, set()
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + size])
        tags |= {value.tag for value in event.summary.value}
        place += 16 + size
    assert {"loss", "accuracy", "lr", "norm/head", "val_loss", "val_accuracy"} <= tags


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--wandb needs a package: pip install 'lipzoo\[wandb\]'"):
        train(make(**{**SMALL_RUN, "wandb": True}), tmp_path / "run", resume=False)


def test_weights_and_biases_gets_flat_records(tmp_path, monkeypatch):
    logged = []

    class Session:
        def log(self, values, step):
            logged.append((step, values))

    class Wandb:
        @staticmethod
        def init(**options):
            assert options["config"]["model"]["width"] == 16
            return Session()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    assert train(make(**{**SMALL_RUN, "wandb": True}), tmp_path / "run", resume=False) == 0
    assert logged[0][0] == 10
    assert set(logged[0][1]) >= {"loss", "norm/head"}


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_flat_joins_nested_names():
    assert flat({"step": 3, "loss": 1.0, "norms": {"a": 2.0}}) == {"loss": 1.0, "norm/a": 2.0}
