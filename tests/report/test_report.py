"""What a run tells besides the terminal: TensorBoard, Weights & Biases, and reading metrics back."""

import shutil
import sys

import pytest

from lipzoo.cli.run import train
from lipzoo.report.metrics import read_metrics
from lipzoo.report.records import flat
from lipzoo.system.errors import UserError
from tests.conftest import SMALL_RUN
from tests.recipe.test_recipe import make


def read_events(folder):
    """The events of all TensorBoard files in a folder."""
    from tensorboardX.proto.event_pb2 import Event  # Records of its file: length, checksum, event, checksum.

    events = []
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            events.append(Event.FromString(data[place + 12 : place + 12 + size]))
            place += 16 + size
    return events


def test_tensorboard_files_hold_the_metrics_and_a_resumed_run_declares_void_what_it_writes_again(tmp_path):
    run, options = tmp_path / "run", {**SMALL_RUN, "tensorboard": True}
    assert train(make(**options, schedule="constant"), run, resume=False) == 0
    tags = {value.tag for event in read_events(run / "tensorboard") for value in event.summary.value}
    assert {"loss", "accuracy", "lr", "norm/head", "val_loss", "val_accuracy"} <= tags
    shutil.rmtree(run / "checkpoints" / "60")
    assert train(make(**options, schedule="constant"), run, resume=True) == 0
    begun = [event.step for event in read_events(run / "tensorboard") if event.HasField("session_log")]
    assert begun == [1, 41]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--wandb needs a package: pip install 'lipzoo\[wandb\]'"):
        train(make(**{**SMALL_RUN, "wandb": True}), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_gets_flat_records_and_a_resumed_run_goes_on_with_its_own(tmp_path, monkeypatch):
    logged, begun, ended = [], [], []

    class Session:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            ended.append(True)

    class Wandb:
        @staticmethod
        def init(**options):
            assert options["config"]["model"]["width"] == 16
            begun.append((options["id"], options["resume"]))
            return Session()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    run, recipe = tmp_path / "run", make(**{**SMALL_RUN, "wandb": True})
    assert train(recipe, run, resume=False) == 0
    assert logged[0][0] == 10
    assert set(logged[0][1]) >= {"loss", "norm/head"}
    shutil.rmtree(run / "checkpoints" / "60")
    assert train(recipe, run, resume=True) == 0
    assert begun[0] == begun[1]
    assert begun[0][1] == "allow"
    assert len(begun[0][0]) == 32
    assert ended == [True, True]


def test_weights_and_biases_that_does_not_start_is_one_sentence(tmp_path, monkeypatch):
    class Wandb:
        @staticmethod
        def init(**options):
            raise ConnectionError("api key not configured\nmore")

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    with pytest.raises(UserError, match=r"does not start \(api key not configured\)"):
        train(make(**{**SMALL_RUN, "wandb": True}), tmp_path / "run", resume=False)


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'[]\n7\n{"step": "x"}\n\xff\n{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_flat_joins_nested_names():
    assert flat({"step": 3, "loss": 1.0, "norms": {"a": 2.0}}) == {"loss": 1.0, "norm/a": 2.0}
