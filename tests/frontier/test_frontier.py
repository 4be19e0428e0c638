"""Frontiers: which settings are best under each bound, against brute force, and what the command writes."""

import csv
import json
import math

import numpy as np
import pytest

from lipzoo.frontier.draw import draw_frontier
from lipzoo.frontier.settings import best_under, default_bounds, frontier, rows_of, settings_of
from lipzoo.sweep.results import tables
from lipzoo.system.errors import UserError
from tests.recipe.test_recipe import make


def made(count=40, seeds=3):
    """Rows of settings × seeds, of two optimizers and three constraints, at random."""
    random, rows = np.random.RandomState(0), []
    for index in range(count):
        lr, bound = 0.01 * (1 + index), float(10 ** random.uniform(-1, 2))
        for seed in range(seeds):
            recipe = make(lr=lr, seed=seed)
            rows.append(
                {
                    "key": f"{index}-{seed}",
                    "status": "done",
                    "recipe": "digits_mlp",
                    "optimizer": ("muon", "adamw")[index % 2],
                    "constraint": ("soft-cap", "hard-cap", "none")[index % 3],
                    "seed": seed,
                    "val_loss": float(random.uniform(0.1, 2)),
                    "val_accuracy": float(random.uniform()),
                    "val_certified_accuracy": float(random.uniform()),
                    "val_lipschitz": bound * (1 + 0.01 * seed),
                    "settings": json.dumps(recipe.to_json()),
                    "command": f"python -m recipes.digits_mlp --lr {lr:g} --seed {seed}",
                }
            )
    return rows


ROWS = made()
BY = ("optimizer", "constraint")


def test_seeds_of_a_setting_are_one_point_with_its_mean_and_students_interval():
    found = settings_of(ROWS, BY)
    assert len(found) == 40
    assert {setting.seeds for setting in found} == {3}
    losses = [row["val_loss"] for row in ROWS[:3]]
    assert found[0].means["val_loss"] == pytest.approx(sum(losses) / 3)
    deviation = math.sqrt(sum((x - sum(losses) / 3) ** 2 for x in losses) / 2)
    assert found[0].halves["val_loss"] == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert found[0].bound == pytest.approx(math.prod(row["val_lipschitz"] for row in ROWS[:3]) ** (1 / 3))
    assert found[0].command.endswith("--seed 0")


def test_a_setting_with_a_run_that_diverged_is_left_out():
    rows = [dict(row) for row in ROWS]
    rows[1] |= {"status": "diverged", "val_loss": None}
    rows[6] |= {"status": "failed"}
    found = settings_of(rows, BY)
    assert len(found) == 39
    assert sorted({setting.seeds for setting in found}) == [2, 3]


def test_a_quantity_that_a_seed_lacks_is_left_out():
    rows = [dict(row) for row in ROWS]
    rows[1]["val_certified_accuracy"] = None
    assert "val_certified_accuracy" not in settings_of(rows, BY)[0].means
    with pytest.raises(UserError, match="leave seed out"):
        settings_of(rows, ("seed",))


@pytest.mark.parametrize("quantity", ["val_loss", "val_accuracy", "val_certified_accuracy"])
def test_the_frontier_is_what_no_smaller_bound_reaches(quantity):
    settings, sign = settings_of(ROWS, BY), 1 if quantity == "val_loss" else -1
    told = frontier(settings, quantity)
    brute = [
        a
        for a in settings
        if not any(b.bound < a.bound and sign * b.means[quantity] <= sign * a.means[quantity] for b in settings)
    ]
    assert {id(setting) for setting in told} == {id(setting) for setting in brute}
    for bound in (0.05, 0.3, 2.0, 1e3):
        under = [setting for setting in settings if setting.bound <= bound]
        best = min(under, key=lambda setting: sign * setting.means[quantity], default=None)
        assert best_under(settings, quantity, bound) is best


def test_the_table_names_the_best_of_each_group_under_each_bound():
    settings = settings_of(ROWS, BY)
    bounds = default_bounds(settings, "val_loss")
    assert bounds == sorted(bounds)
    assert len(bounds) <= 13
    assert bounds[0] >= min(s.bound for s in settings)
    assert bounds[-1] >= max(s.bound for s in frontier(settings, "val_loss"))
    for row in rows_of(settings, "val_loss", bounds):
        own = [s for s in settings if row["best_of_all"] or " ".join(s.group) == row["group"]]
        own = [s for s in own if s.bound <= row["at_most"]]
        assert row["val_loss"] == min(s.means["val_loss"] for s in own)
        assert row["command"] in {s.command for s in own}


def test_the_command_writes_a_picture_and_a_table(tmp_path, capsys):
    (tmp_path / "results.parquet").write_bytes(tables(ROWS)[0])
    draw_frontier(tmp_path / "results.parquet")
    assert (tmp_path / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "frontier.csv").open() as file:
        assert {"at_most", "group", "command"} <= set(next(csv.DictReader(file)))
    assert "python -m recipes.digits_mlp --lr" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no results.parquet"):
        draw_frontier(tmp_path)
    (tmp_path / "results.parquet").write_bytes(tables([{**row, "status": "diverged"} for row in ROWS])[0])
    with pytest.raises(UserError, match="holds no run that is done"):
        draw_frontier(tmp_path)
    (tmp_path / "results.parquet").write_bytes(tables(ROWS)[0])
    with pytest.raises(UserError, match="no column 'width'"):
        draw_frontier(tmp_path, by=("width",))
    with pytest.raises(UserError, match="raise --bounds"):
        draw_frontier(tmp_path, bounds=(1e-9,))
