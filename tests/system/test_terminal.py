"""What every command has in common: streams of any kind, readers that go, signals, and one sentence at the end."""

import contextlib
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lipzoo.data.download import cache_dir
from lipzoo.system.errors import Interrupted, UserError
from lipzoo.system.files import expanded
from lipzoo.system.progress import waiting
from lipzoo.system.signals import ABANDONED, abandonable
from lipzoo.system.streams import make_console, outliving_readers
from lipzoo.system.terminal import guarded


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-8", "‖x‖ ≤ 2×3 ☃ ?\n"), ("ascii", "||x|| <= 2x3 ? ?\n"), ("cp1252", "||x|| <= 2×3 ? ?\n")],
)
def test_signs_that_an_encoding_lacks_are_spelled(encoding, told, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream(encoding))
    text = "‖x‖ ≤ 2×3 ☃ \udcff"  # The last stands for a byte in the name of a file.

    def command():
        print(text)
        raise UserError(text)

    assert guarded(command) == 2
    for name, prefix in (("stdout", ""), ("stderr", "error: ")):
        written = getattr(sys, name)
        written.flush()
        assert written.buffer.getvalue().decode(encoding) == prefix + told


def test_tables_are_drawn_with_what_the_encoding_has():
    from rich.table import Table

    console = make_console(file=stream("ascii"))
    table = Table("[x]", title=":key:")
    table.add_row("a[/b]")
    console.print(table)
    console.file.flush()
    text = console.file.buffer.getvalue().decode("ascii")
    assert "| a[/b] |" in text


def test_what_users_name_is_printed_as_it_is():
    file = io.StringIO()
    make_console(file=file).print("run: [x] a[/b] :key: [red]3")
    assert file.getvalue() == "run: [x] a[/b] :key: [red]3\n"


@contextlib.contextmanager
def unread(monkeypatch):
    """stdout is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", file)
        yield


def chatter():
    make_console().print("x" * 100_000)
    print("y" * 100_000)
    return 0


def test_a_reader_who_goes_ends_a_tool_silently(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr := io.StringIO())
    with unread(monkeypatch):
        assert guarded(chatter) == 141
        assert guarded(lambda: print("short") or 0) == 0  # Goes nowhere from now on.
    assert stderr.getvalue() == ""


def test_work_can_outlive_its_reader(monkeypatch):
    def command():
        with outliving_readers():
            return chatter()

    with unread(monkeypatch):
        assert guarded(command) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_output_that_cannot_be_written(monkeypatch, capsys):
    with open("/dev/full", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert guarded(chatter) == 2
    assert capsys.readouterr().err == "error: No space left on device: the output\n"


def raising(error):
    def command():
        raise error

    return command


ENDS = [
    (UserError("do this\nor that"), 2, "do this\\nor that"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (Interrupted("interrupted: saved", 15), 143, "interrupted: saved"),
    (FileNotFoundError(2, "No such file", "a[/b]"), 2, "No such file: a[/b]"),
    (MemoryError(), 2, "there is not enough memory"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), 2, "there is not enough memory"),
]


@pytest.mark.parametrize(("error", "status", "message"), ENDS, ids=[repr(e) for e, _, _ in ENDS])
def test_every_end_is_one_sentence(error, status, message, capsys):
    assert guarded(raising(error)) == status
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_backend_that_matplotlib_lacks_is_named(tmp_path):
    command = [sys.executable, "-m", "recipes.digits_mlp", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, env={**os.environ, "MPLBACKEND": "none"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: matplotlib has no backend MPLBACKEND=none: unset it, or name another, such as agg\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        guarded(raising(RuntimeError("a mistake of ours")))


def test_sigterm_clears_away_what_is_half_done(capsys):
    cleared = []

    def command():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleared.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert guarded(command) == 143
    assert cleared == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_long_calls_can_be_called_off():
    assert abandonable(lambda: 3, lambda: False) == 3
    with pytest.raises(KeyError):
        abandonable(lambda: {}[0], lambda: False)
    release = threading.Event()
    assert abandonable(release.wait, lambda: True) is None
    (thread,) = [thread for thread in threading.enumerate() if thread.name == ABANDONED]
    release.set()
    thread.join()


def test_homes_that_do_not_exist_are_named(monkeypatch):
    with pytest.raises(UserError, match="no home directory to take for the ~ of ~nosuchuser/x"):
        expanded("~nosuchuser/x")
    monkeypatch.setenv("LIPZOO_DATA_DIR", "~nosuchuser/data")
    with pytest.raises(UserError, match="set LIPZOO_DATA_DIR"):
        cache_dir()
    monkeypatch.setenv("LIPZOO_DATA_DIR", "")  # As if it were not set, and not the current directory.
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_dir()) == "/home/me/.cache/lipzoo"


def test_a_long_wait_is_told_now_and_then_where_no_terminal_is(monkeypatch):
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr("lipzoo.system.progress.time.monotonic", lambda: next(clock))
    console = make_console(file=io.StringIO())
    with waiting("certifying", 4, console) as wait:
        for _ in range(4):
            wait.advance()
    with waiting("compiling", None, console) as wait:
        wait.advance(0)
        wait.advance(0)
    lines = console.file.getvalue().splitlines()
    assert lines == ["certifying: 50%, about 40 s left", "certifying: 100%, about 0 s left", "compiling: 40 s so far"]


def test_a_wait_shows_the_time_on_a_terminal():
    console = make_console(file=io.StringIO(), force_terminal=True, width=80)
    with waiting("certifying [x]", 4, console) as wait:
        wait.advance()
    with waiting("compiling", None, console):
        pass
    text = console.file.getvalue()
    assert "certifying [x]" in text
    assert "/4" in text
    assert "0 s so far" in text
