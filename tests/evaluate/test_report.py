"""The page: whole, of one file, and rendered in a browser."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lipzoo.evaluate import __main__ as command
from lipzoo.report.pictures import Line, lines, spread, svg
from lipzoo.system.terminal import guarded

QUICK = ["--images", "12", "--steps", "4", "--restarts", "1", "--boundary-steps", "12", "--tighten", "2"]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="module")
def page_file(digits_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [shutil.copytree(digits_run, folder / name) for name in ("first", "second & <last>")]
    path = folder / "page.html"
    arguments, sys.argv = sys.argv, ["evaluate", *map(str, runs), *QUICK, "--report", str(path)]
    try:
        assert guarded(command._main) == 0
    finally:
        sys.argv = arguments
    return path


def test_a_page_holds_everything_and_needs_nothing_from_elsewhere(page_file):
    text = page_file.read_text()
    for word in (
        "certified at 36/255",
        "Weights",
        "Bounds",
        "Tightness",
        "Norms over training",
        "Singular values",
        "jax ",
    ):
        assert word in text
    assert "python -m lipzoo.evaluate" in text
    assert "second &amp; &lt;last&gt;" in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "url(http" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(page_file, width, tmp_path):
    measure = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    probe = tmp_path / "probe.html"
    probe.write_text(page_file.read_text().replace("</body>", measure))
    shown = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    dom = subprocess.run(
        [*shown, "--dump-dom", f"file://{probe}"], capture_output=True, text=True, check=True, timeout=120
    )
    inside, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", dom.stdout).groups())
    assert inside <= window
    picture = tmp_path / "shown.png"
    subprocess.run(
        [*shown, f"--screenshot={picture}", f"file://{page_file}"], capture_output=True, check=True, timeout=120
    )
    assert np.asarray(Image.open(picture).convert("L")).std() > 5  # Not blank.


def test_labels_keep_their_distance_and_their_order():
    places = spread([0.5, 0.5, 0.52, 0.1], 0.1)
    assert np.diff(np.sort(places)).min() >= 0.1 - 1e-12
    assert np.argsort(places, kind="stable").tolist() == [3, 0, 1, 2]
    assert spread([], 0.1) == []
    assert max(spread([1.0] * 5, 0.1)) <= 1.1 + 1e-12


def test_a_figure_takes_its_ink_from_the_page():
    figure = lines([Line("a & $b", [0, 1], [1, 2])], "title", "x", "y")
    assert isinstance(figure, Figure)
    assert "currentColor" in svg(figure)
    assert "a &amp; $b" in svg(figure)
