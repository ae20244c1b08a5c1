"""The view's source: what is read when, what is said of bad views, compare and swap, and a follower that survives."""

import contextlib
import os
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from shoal_core import view
from shoal_core.errors import ConfigError, Forbidden, NotFound, OriginError, ShoalError
from shoal_transport import view_source
from shoal_transport.view_source import ViewSource
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.views import json_of, of, origin, path

__all__ = ["origin", "path"]

TIMEOUT_S = 10.0


def settle(path: Path) -> None:
    """As if it had been written an hour ago."""
    past_ns = time.time_ns() - 3600 * 10**9
    os.utime(path, ns=(past_ns, past_ns))


class Plain(ThreadingHTTPServer):
    """Answers what it is told to, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.body = json_of(1)
        self.etag: str | None = None
        self.status = 200
        self.chunked = False
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), PlainHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/view"


class PlainHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Plain

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("If-None-Match"))
        self.send_response(server.status)
        if server.etag is not None:
            self.send_header("ETag", server.etag)
        if server.status == 302:
            self.send_header("Location", "/elsewhere")
            server.status = 200
        body = server.body if server.status == 200 else b""
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader goes when it has had enough
                for start in range(0, len(body), 1 << 20):
                    piece = body[start : start + (1 << 20)]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def plain() -> Iterator[Plain]:
    with Plain() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# Locations


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_a_path_or_a_file_url(path: Path, form: str):
    assert ViewSource(form.format(path)).read(TIMEOUT_S) == of(1)


def test_a_file_url_is_unquoted(tmp_path: Path):
    (tmp_path / "a view.json").write_bytes(json_of(1))
    assert ViewSource(f"file://{tmp_path}/a%20view.json").read(TIMEOUT_S) == of(1)


@pytest.mark.parametrize(
    "location", ["view.json", "", "ftp://host/view", "file://host/view", "http:///view", "http://[::1/"]
)
def test_a_location_that_is_none(location: str):
    with pytest.raises(ConfigError, match="view: "):
        ViewSource(location)


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="user's name") as raised:
        ViewSource("http://operator:secret@host/view")
    assert "secret" not in str(raised.value)


# Files


def test_a_file_is_a_view_once_until_it_changes(path: Path):
    source = ViewSource(str(path))
    assert source.read(TIMEOUT_S) == of(1)
    assert source.read(TIMEOUT_S) is None
    path.write_bytes(json_of(2))
    assert source.read(TIMEOUT_S) == of(2)
    assert source.read(TIMEOUT_S) is None


def test_a_file_that_was_only_touched_did_not_change(path: Path):
    source = ViewSource(str(path))
    source.read(TIMEOUT_S)
    os.utime(path)
    assert source.read(TIMEOUT_S) is None


def test_a_settled_file_is_not_read_again(path: Path):
    settle(path)
    source = ViewSource(str(path))
    assert source.read(TIMEOUT_S) == of(1)
    before = path.stat()
    path.write_bytes(json_of(2))  # as long as before, and made to look as old: nobody would see it by its identity
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.read(TIMEOUT_S) is None
    settle(path)
    assert source.read(TIMEOUT_S) == of(2)


def test_a_fresh_file_is_read_again_though_it_looks_the_same(path: Path):
    source = ViewSource(str(path))
    source.read(TIMEOUT_S)
    before = path.stat()
    path.write_bytes(json_of(2))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # two writes within one tick of the clock
    assert source.read(TIMEOUT_S) == of(2)


def test_a_file_behind_a_link_that_is_moved(tmp_path: Path):
    for epoch in (1, 2):
        (tmp_path / f"view-{epoch}").write_bytes(json_of(epoch))
        settle(tmp_path / f"view-{epoch}")
    link = tmp_path / "view.json"
    link.symlink_to("view-1")
    source = ViewSource(str(link))
    assert source.read(TIMEOUT_S) == of(1)
    link.unlink()
    link.symlink_to("view-2")
    assert source.read(TIMEOUT_S) == of(2)


def test_half_a_view_is_an_error_until_it_is_whole(path: Path):
    source = ViewSource(str(path))
    source.read(TIMEOUT_S)
    path.write_bytes(json_of(2)[:-10])
    settle(path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{path}: no JSON: Input data was truncated"):
            source.read(TIMEOUT_S)
    path.write_bytes(json_of(1))
    assert source.read(TIMEOUT_S) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("{}", "epoch: this field is required"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"epoch": 1, "nodes": [], "colour": 1}', "colour: unknown field"),
        ('{"epoch": 1, "nodes": [{"id": "a", "adresses": []}]}', r"nodes\[0\].adresses: unknown .*mean addresses"),
        ('{"epoch": 1, "nodes": [{"id": "a", "addresses": [], "capacity_bytes": "x"}]}', r"nodes\[0\].capacity_bytes"),
        ('{"epoch": 1.5, "nodes": []}', "epoch: "),
        ('{"epoch": 0, "nodes": []}', "epoch: 0 "),
        ('{"epoch": 1, "nodes": [{"id": "a", "addresses": ["host:1"], "capacity_bytes": 1}]}', "nodes.a.addresses: "),
        ('{"epoch": 1, "nodes": []}\n{', "no JSON"),
        ('{"epoch": "\udcff"}', "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)  # fmt: skip
def test_what_is_no_view_is_said_with_file_and_field(path: Path, text: str, said: str):
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=f"^{path}: {said}"):
        ViewSource(str(path)).read(TIMEOUT_S)


def test_a_file_that_is_too_large(path: Path):
    with path.open("r+b") as file:
        file.truncate(view_source.BODY_BYTES_MAX + 1)
    with pytest.raises(ConfigError, match=f"{path}: larger than"):
        ViewSource(str(path)).read(TIMEOUT_S)


def test_ten_thousand_nodes_are_not_too_many(path: Path):
    node = view.Node("n" * 60, tuple(f"tcp:{'h' * 60}:{port}" for port in (1, 2, 3)), 1, "zone", "rack")
    large = view.make(1, [msgspec.structs.replace(node, id=f"{node.id}{number:05}") for number in range(10_000)])
    path.unlink()
    ViewSource(str(path)).write(large)
    assert ViewSource(str(path)).read(TIMEOUT_S) == large


def test_files_that_cannot_be_had(tmp_path: Path):
    with pytest.raises(NotFound, match=r"missing\.json: No such file"):
        ViewSource(str(tmp_path / "missing.json")).read(TIMEOUT_S)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFound, match="Not a directory"):
        ViewSource(str(tmp_path / "file" / "view.json")).read(TIMEOUT_S)
    with pytest.raises(ConfigError, match="not a file"):
        ViewSource(str(tmp_path)).read(TIMEOUT_S)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a file"):
        ViewSource(str(tmp_path / "pipe")).read(TIMEOUT_S)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OriginError, match="loop: "):
        ViewSource(str(tmp_path / "loop")).read(TIMEOUT_S)


def test_failing_reads_leave_no_descriptor_open(tmp_path: Path):
    sources = [ViewSource(str(tmp_path)), ViewSource(str(tmp_path / "view.json"))]
    before = len(os.listdir("/proc/self/fd"))
    for source in sources * 10:
        with pytest.raises(ShoalError):
            source.read(TIMEOUT_S)
    assert len(os.listdir("/proc/self/fd")) == before


# URLs


def test_a_url_is_asked_with_the_etag_of_what_is_known(plain: Plain):
    plain.etag = '"one"'
    source = ViewSource(plain.url)
    assert source.read(TIMEOUT_S) == of(1)
    plain.status = 304
    assert source.read(TIMEOUT_S) is None
    plain.status, plain.etag, plain.body = 200, '"two"', json_of(2)
    assert source.read(TIMEOUT_S) == of(2)
    source.read(TIMEOUT_S)
    assert plain.asked == [None, '"one"', '"one"', '"two"']


def test_a_real_not_modified(origin: HttpOrigin):
    source = ViewSource(origin.url("/view"))
    assert source.read(TIMEOUT_S) == of(1)
    assert source.read(TIMEOUT_S) is None
    origin.put("/view", json_of(2))
    assert source.read(TIMEOUT_S) == of(2)
    assert origin.count("/view") == 3


def test_without_an_etag_the_bytes_are_compared(plain: Plain):
    source = ViewSource(plain.url)
    assert source.read(TIMEOUT_S) == of(1)
    assert source.read(TIMEOUT_S) is None
    plain.body = json_of(1, "b")
    assert source.read(TIMEOUT_S) == of(1, "b")
    assert plain.asked == [None, None, None]


def test_the_etag_of_a_bad_view_is_not_kept(plain: Plain):
    plain.etag, plain.body = '"bad"', b"{"
    source = ViewSource(plain.url)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"{plain.url}: no JSON"):
            source.read(TIMEOUT_S)
    assert plain.asked == [None, None]


def test_a_redirect_is_followed(plain: Plain):
    plain.status = 302
    assert ViewSource(plain.url).read(TIMEOUT_S) == of(1)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (410, NotFound), (401, Forbidden), (403, Forbidden), (500, OriginError), (304, OriginError)],
)
def test_what_a_server_refuses(plain: Plain, status: int, kind: type[ShoalError]):
    plain.status = status
    with pytest.raises(kind, match=f"{plain.url}: {status} "):
        ViewSource(plain.url).read(TIMEOUT_S)


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OriginError, match=f"http://127.0.0.1:{port}/view: .*refused"):
        ViewSource(f"http://127.0.0.1:{port}/view").read(TIMEOUT_S)
    with pytest.raises(OriginError, match="nonnumeric port"):
        ViewSource("http://127.0.0.1:port/view").read(TIMEOUT_S)


def test_a_connection_that_is_reset(origin: HttpOrigin):
    origin.fail("/view", Fault(reset=True, times=1))
    source = ViewSource(origin.url("/view"))
    with pytest.raises(OriginError, match="/view: "):
        source.read(TIMEOUT_S)
    assert source.read(TIMEOUT_S) == of(1)


def test_an_answer_that_ends_early(origin: HttpOrigin):
    origin.fail("/view", Fault(body_bytes=20))
    with pytest.raises(OriginError, match=r"ended \d+ bytes early"):
        ViewSource(origin.url("/view")).read(TIMEOUT_S)


def test_an_answer_that_does_not_come(origin: HttpOrigin):
    gate = threading.Event()
    origin.fail("/view", Fault(gate=gate))
    with pytest.raises(OriginError, match="timed out"):
        ViewSource(origin.url("/view")).read(0.05)
    gate.set()


def test_an_answer_that_never_ends():
    over = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.01):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        with pytest.raises(OriginError, match="did not end in time"):
            ViewSource(f"http://127.0.0.1:{server.getsockname()[1]}/view").read(0.3)
        over.set()
        thread.join()


def test_an_answer_that_is_too_large(plain: Plain):
    plain.chunked, plain.body = True, b" " * (view_source.BODY_BYTES_MAX + (8 << 20))
    with pytest.raises(ConfigError, match=f"{plain.url}: larger than"):
        ViewSource(plain.url).read(TIMEOUT_S)


def test_proxies_of_the_environment_are_not_asked(plain: Plain, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(OSError, match="refused"):
        urllib.request.build_opener().open(plain.url)
    assert ViewSource(plain.url).read(TIMEOUT_S) == of(1)
