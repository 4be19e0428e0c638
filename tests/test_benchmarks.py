"""What benchmarks share: a search along axes, tables, kernels of a trace; and that it survives what does not run."""

import csv
import dataclasses
import gzip
import itertools
import json

import pytest

from benchmarks import gpt145m, gpt145m_bench
from benchmarks.descent import ascend
from benchmarks.gpt145m_step import Way
from benchmarks.kernels import kernels, newest_trace, places
from benchmarks.tables import read_table, to_csv, to_markdown


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int


AXES = {"y": range(-3, 4), "x": range(5)}


def score(point):
    """The best y depends on x, which is found after it: two rounds."""
    return -10 * (point.x - 3) ** 2 - (point.y - point.x + 2) ** 2


def test_the_search_finds_the_best_and_asks_for_nothing_twice():
    asked = []

    def rate(points):
        asked.extend(points)
        return {point: score(point) for point in points}

    every = [Point(x, y) for x, y in itertools.product(AXES["x"], AXES["y"])]
    assert ascend(Point(0, 3), AXES, rate) == max(every, key=score)
    assert len(set(asked)) == len(asked) < len(every)


def test_the_search_ends_where_nothing_is_measured():
    assert ascend(Point(1, 1), AXES, lambda points: {}) == Point(1, 1)


EVENTS = [
    {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}},
    {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "/host:CPU"}},
    {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name", "args": {"name": "Stream #7(Compute)"}},
    {"ph": "M", "pid": 1, "tid": 8, "name": "thread_name", "args": {"name": "XLA Ops"}},
    {"ph": "X", "pid": 1, "tid": 7, "ts": 0, "dur": 600, "name": "nvjet_tst_128x256", "args": {"hlo_op": "gemm.1"}},
    {"ph": "X", "pid": 1, "tid": 7, "ts": 600, "dur": 100, "name": "loop_fusion", "args": {"hlo_op": "fusion.2"}},
    {"ph": "X", "pid": 1, "tid": 7, "ts": 700, "dur": 300, "name": "cudnn_sdpa_sm90_flash_fprop", "args": {}},
    {"ph": "X", "pid": 1, "tid": 7, "ts": 1000, "dur": 600, "name": "nvjet_tst_128x256", "args": {"hlo_op": "gemm.1"}},
    {"ph": "X", "pid": 1, "tid": 8, "ts": 0, "dur": 1600, "name": "derived", "args": {"hlo_op": "gemm.1"}},
    {"ph": "X", "pid": 2, "tid": 9, "ts": 0, "dur": 9999, "name": "python"},
]
PROGRAM = """
  %gemm.1 = bf16[8,8] custom-call(%a, %b), metadata={op_name="jit(step)/jvp(jit(main))/dot_general" stack=1}
  ROOT fusion.2 = f32[8] fusion(%gemm.1), kind=kLoop, metadata={op_name="jit(step)/while/body/mul"}
"""


def test_kernels_of_a_stream_are_added_up_and_placed(tmp_path):
    folder = tmp_path / "plugins/profile/now"
    folder.mkdir(parents=True)
    (folder / "vm.trace.json.gz").write_bytes(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode()))
    rows = kernels(newest_trace(tmp_path), 2, places(PROGRAM))
    assert [(row["kernel"], row["kind"], row["place"]) for row in rows] == [
        ("nvjet_tst_128x256", "products", "jvp(jit(main))/dot_general"),
        ("cudnn_sdpa_sm90_flash_fprop", "attention", ""),
        ("loop_fusion", "loops", "mul"),
    ]
    assert [row["ms a step"] for row in rows] == pytest.approx([0.6, 0.15, 0.05])
    assert [row["share"] for row in rows] == pytest.approx([0.75, 0.1875, 0.0625])
    assert [row["calls a step"] for row in rows] == [1, 0.5, 0.5]


def test_without_an_accelerator_a_loop_has_the_time_that_its_body_leaves():
    inner = [(10, 40, "dot.1"), (60, 30, "add.2")]
    events = [
        {"ph": "X", "pid": 1, "tid": 1, "ts": start, "dur": length, "name": name, "args": {"hlo_op": name}}
        for start, length, name in [(0, 100, "while.3"), *inner, (100, 5, "add.2")]
    ]
    assert {row["kernel"]: row["ms a step"] for row in kernels(events, 1, {})} == pytest.approx(
        {"while.3": 0.03, "dot.1": 0.04, "add.2": 0.035}
    )
    assert kernels([], 1, {}) == []


def test_tables_have_all_columns(tmp_path):
    path = tmp_path / "table.csv"
    assert read_table(path) == []
    path.write_text(to_csv([{"a": "1"}, {"a": "x, y", "b": "2"}]))
    assert read_table(path) == [{"a": "1", "b": ""}, {"a": "x, y", "b": "2"}]
    assert to_markdown([{"a": "1 | 2"}], ("a", "b")) == "| a | b |\n| --- | --- |\n| 1 / 2 |  |\n"


LINE = gpt145m.CommandLine(rows=(2, 4, 8), accum_steps=(0,), remat=("products", "none"), depth=1, width=16, heads=2)


def bench_of(line, budget=1e9):
    line = gpt145m.filled(line)
    return gpt145m_bench.Bench(gpt145m.recipe_of(line), "sigma1", line.out, budget, 1, 2, 64), line


@pytest.fixture
def made(monkeypatch):
    """The recipes that are compiled: those of 4 windows at once have no room, and so have those without remat."""
    recipes = []

    def compiled(recipe):
        recipes.append(recipe)
        if recipe.data.batch_size // recipe.training.accum_steps == 4 or recipe.model.remat == "none":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
        return gpt145m_bench.Compiled(None, recipe, None, 1.0)

    monkeypatch.setattr(gpt145m_bench.Compiled, "gigabytes", 1.0)
    monkeypatch.setattr(gpt145m_bench, "compiled", compiled)
    monkeypatch.setattr(gpt145m_bench, "step_seconds", lambda made, rounds: 2.0)
    monkeypatch.setattr(gpt145m_bench, "product_rate", lambda *arguments: 1e12)
    return recipes


def test_a_search_goes_on_where_memory_ends(made, tmp_path):
    bench, line = bench_of(dataclasses.replace(LINE, out=tmp_path))
    best = gpt145m.search(bench, line)
    assert (best.rows, best.remat, best.documents) == (2, "products", True)
    assert {way.rows for way in bench.rows} >= {2, 4}
    assert bench.rows[best]["note"] == "fastest"
    assert bench.fastest.recipe == best.recipe(bench.recipe)
    assert set(bench.rate(gpt145m.variations(best))) <= set(bench.rows)
    exhausted = [way for way, row in bench.rows.items() if "out of memory" in row.get("note", "")]
    assert {(way.rows, way.remat) for way in exhausted} >= {(4, "products"), (2, "none")}
    assert not any(way.rows > 4 for way in exhausted), "what is larger than what did not fit was tried"
    assert len((tmp_path / "gpt145m.md").read_text().splitlines()) == 4 + len(bench.rows)


def test_a_spent_budget_leaves_one_way_and_its_row_beside_older_ones(made, tmp_path):
    (tmp_path / "gpt145m.csv").write_text("date,seconds\n2026-01-01,3\n")
    bench, line = bench_of(dataclasses.replace(LINE, out=tmp_path), budget=0.0)
    assert gpt145m.search(bench, line) == gpt145m.first_way(line, bench.recipe)
    old, new = csv.DictReader((tmp_path / "gpt145m.csv").read_text().splitlines())
    assert (old["seconds"], new["seconds"], new["tokens a second"]) == ("3", "2", "1024")


def test_where_documents_cannot_be_masked_the_rest_is_measured(made, monkeypatch, tmp_path):
    compiled = gpt145m_bench.compiled

    def refusing(recipe):
        if recipe.model.separator >= 0:
            raise TypeError("cannot reshape array")
        return compiled(recipe)

    monkeypatch.setattr(gpt145m_bench, "compiled", refusing)
    bench, line = bench_of(dataclasses.replace(LINE, out=tmp_path))
    assert gpt145m.search(bench, line).documents is False
    assert bench.rows[gpt145m.first_way(line, bench.recipe)]["note"] == "TypeError: cannot reshape array"


def test_a_way_fills_the_batch_of_the_recipe():
    way = Way(32, 0, "blocks", "float32", "matrix", 2048, 128, True)
    recipe = way.recipe(gpt145m.VARIANTS["sigma1"])
    assert (recipe.data.batch_size, recipe.training.accum_steps, recipe.data.unit[1]) == (192, 6, 2048)
    assert (recipe.model.window, recipe.model.separator, recipe.model.remat) == (128, 50256, "blocks")
    assert dataclasses.replace(way, rows=96).larger(way)
    assert not dataclasses.replace(way, rows=96, remat="none").larger(way)
    alone = dataclasses.replace(way, parts=1, documents=False).recipe(gpt145m.VARIANTS["sigma1"])
    assert (alone.data.batch_size, alone.model.separator) == (32, -1)
