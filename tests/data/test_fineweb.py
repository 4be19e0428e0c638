"""FineWeb10B's shards from a local server: checked against the pointers beside them, and only what is missing."""

import hashlib
import http.server
import threading
from types import SimpleNamespace

import pytest

from lipzoo.data import TokensConfig, fineweb
from lipzoo.system.errors import UserError
from tests.data.test_tokens import shard_bytes

NAMES = ("fineweb_val_000000.bin", "fineweb_train_000001.bin", "fineweb_train_000002.bin")
TRAIN = NAMES[1]
CONFIG = TokensConfig(batch_size=2, seq_len=8, train_shards=2)


def pointer(content):
    sha256 = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """An empty cache in front of a server: what it answers, by path, and what it was asked."""
    pages, asked = {}, []
    for index, name in enumerate(NAMES):
        content = shard_bytes(range(100 * index, 100 * index + 60))
        pages[f"/resolve/main/{name}"], pages[f"/raw/main/{name}"] = content, pointer(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path not in pages:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(pages[self.path])))
            self.end_headers()
            self.wfile.write(pages[self.path])

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        monkeypatch.setattr(fineweb, "URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
        yield SimpleNamespace(pages=pages, asked=asked, folder=tmp_path / "fineweb10B")
        server.shutdown()


def test_missing_shards_are_downloaded_once(source):
    data = CONFIG.load(seed=0)
    assert [shard[0] for shard in data.shards] == [100, 200]
    assert data.test.input[0, 0] == 0
    assert sorted(path.name for path in source.folder.iterdir()) == sorted(NAMES)
    (source.folder / NAMES[2]).unlink()
    source.asked.clear()
    CONFIG.load(seed=0)
    assert source.asked == [f"/raw/main/{NAMES[2]}", f"/resolve/main/{NAMES[2]}"]


def test_no_more_shards_are_asked_for_than_there_are(source, monkeypatch):
    monkeypatch.setattr(fineweb, "TRAIN_SHARDS", 1)
    data = TokensConfig(batch_size=2, seq_len=8, train_shards=500).load(seed=0)
    assert len(data.shards) == 1
    assert len(source.asked) == 4


def damaged(pages):
    pages[f"/resolve/main/{TRAIN}"] = pages[f"/resolve/main/{TRAIN}"][:-1] + b"x"


DAMAGE = [
    (damaged, "the download is damaged or the source has changed"),
    (lambda pages: pages.pop(f"/raw/main/{TRAIN}"), f"could not download {TRAIN}"),
    (lambda pages: pages.pop(f"/resolve/main/{TRAIN}"), f"could not download {TRAIN}"),
    (lambda pages: pages.update({f"/raw/main/{TRAIN}": b"<html>"}), "is not a Git-LFS pointer"),
    (lambda pages: pages.update({f"/raw/main/{TRAIN}": b""}), "is not a Git-LFS pointer"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_bad_download_is_told_and_leaves_nothing_behind(source, damage, message):
    damage(source.pages)
    with pytest.raises(UserError, match=message) as error:
        CONFIG.load(seed=0)
    assert "\n" not in str(error.value)
    assert [path.name for path in source.folder.iterdir()] == [NAMES[0]]


def test_without_a_network_the_error_says_where_the_shards_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("LIPZOO_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(fineweb, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        CONFIG.load(seed=0)
    for word in (NAMES[0], "http://127.0.0.1:9/raw/main", str(tmp_path / "fineweb10B"), "LIPZOO_DATA_DIR"):
        assert word in str(error.value)
