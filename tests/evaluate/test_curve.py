"""What validations tell of bounds: the same as is said of the checkpoint afterwards."""

import pytest

import lipzoo
from lipzoo.certify.certificate import Certificate
from lipzoo.evaluate.curve import prove
from lipzoo.evaluate.radii import pair_constants, radii_of
from lipzoo.models import GPT, MLP, GPTConfig
from lipzoo.report.metrics import read_metrics
from lipzoo.theory.weight import map_weights


def test_the_last_validation_tells_what_the_checkpoint_has(digits_run):
    told = [record for record in read_metrics(digits_run / "metrics.jsonl") if "val_loss" in record]
    loaded = lipzoo.load(digits_run)
    assert told[-1]["val_lipschitz"] == pytest.approx(Certificate.of(loaded.model).lipschitz, rel=1e-12)
    data = loaded.recipe.data.load(0)
    radii = radii_of(loaded.model, data.test, data.white, pair_constants(loaded.model))
    assert told[-1]["val_certified_accuracy"] == pytest.approx(radii.certified_accuracy([36 / 255])[0], abs=1e-6)
    assert all(record["val_certified_accuracy"] <= record["val_accuracy"] for record in told)


def test_what_has_no_bound_or_takes_long_is_not_proved(getkey, monkeypatch):
    model = MLP(4, 4, 3, key=getkey())
    assert prove(model).lipschitz == 0
    assert prove(map_weights(lambda w: w.with_array(w.array * float("nan")), model)) is None
    text = prove(GPT(11, GPTConfig(width=8, heads=2, depth=1, zero_init=False), key=getkey()))
    assert text.pairs is None
    assert text.lipschitz > 0
    monkeypatch.setattr("lipzoo.evaluate.curve.LARGEST", 10)
    assert prove(model) is None
