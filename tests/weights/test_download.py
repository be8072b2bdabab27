"""Downloads from a server on this machine: whole and right, or not there at all."""

import hashlib
import http.server
import socket
import threading

import pytest

from keras_cdiff.weights.download import PUBLISHED, RemoteFile, fetch

pytestmark = pytest.mark.backend_free

CONTENT = bytes(range(256)) * 20


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /weights.pth, and half of it at /half.pth."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // (2 if self.path == "/half.pth" else 1)])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def remote(server, monkeypatch):
    """A function: a file's name and what differs in its description -> the remote file."""
    monkeypatch.setenv("no_proxy", "*")
    server.requests.clear()

    def describe(name="weights.pth", **changes):
        digest = hashlib.sha256(CONTENT).hexdigest()
        address = f"http://127.0.0.1:{server.server_port}/{name}"
        return RemoteFile(address, len(CONTENT), digest)._replace(**changes)

    return describe


def test_a_file_is_downloaded_once(server, remote, tmp_path, capsys):
    folder = tmp_path / "not" / "there"
    path = fetch(remote(), folder)
    assert path == folder / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert f"Downloading {remote().url} (0.0 MB) to {path}" in capsys.readouterr().err
    assert fetch(remote(), folder) == path
    assert server.requests == ["/weights.pth"]
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("weights.pth", {"sha256": "0" * 64}, "what came has the sha256 .*, not 0{64}"),
        ("weights.pth", {"size": 7}, "what came has 5120 bytes instead of 7"),
        ("half.pth", {}, "(2560 bytes instead of 5120|IncompleteRead)"),
        ("missing.pth", {}, "HTTP Error 404"),
    ],
)
def test_nothing_is_kept_of_a_download_that_fails(remote, tmp_path, name, changes, message):
    file = remote(name, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        fetch(file, tmp_path)
    assert list(tmp_path.iterdir()) == []
    for needed in (file.url, str(tmp_path / name), file.sha256):
        assert needed in str(raised.value)


def test_without_a_connection_the_message_says_what_to_do(tmp_path, monkeypatch, remote):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        file = remote(url=f"http://127.0.0.1:{unused.getsockname()[1]}/weights.pth")
        monkeypatch.setenv("KERAS_CDIFF_CACHE", str(tmp_path))
        with pytest.raises(ValueError, match=r"could not be downloaded.*on another machine"):
            fetch(file)
    (tmp_path / "weights.pth").write_bytes(CONTENT)
    assert fetch(file) == tmp_path / "weights.pth"


def test_the_cache_is_checked_too(server, remote, tmp_path):
    (tmp_path / "weights.pth").write_bytes(CONTENT[::-1])
    with pytest.raises(ValueError, match=r"in the cache has the sha256 .*: delete it"):
        fetch(remote(), tmp_path)
    assert server.requests == []


def test_the_cache_of_the_user(remote, tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_CDIFF_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(remote()) == tmp_path / ".cache" / "keras_cdiff" / "weights.pth"


def test_published_files():
    for remote in PUBLISHED.values():
        assert remote.url.startswith("https://")
        # Both publishers put the first digits of the sha256 into the name.
        assert remote.name.removesuffix(".pth").rpartition("-")[2] == remote.sha256[:8]
    with pytest.raises(ValueError, match=r"inception, mobilenet_v2\. Received: remote='vgg'"):
        fetch("vgg")
