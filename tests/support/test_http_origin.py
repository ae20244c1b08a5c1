"""The HTTP origin behaves well by default, and fails exactly as its plan says."""

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor

import obstore
import obstore.exceptions
import pytest
from obstore.store import HTTPStore

from tests.support.http_origin import Fault, HttpOrigin

DATA = bytes(range(200))


def _get(origin: HttpOrigin, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(origin.base_url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        ("bytes=0-9", 206, DATA[:10]),
        ("bytes=190-", 206, DATA[190:]),
        ("bytes=-5", 206, DATA[-5:]),
        ("bytes=150-999", 206, DATA[150:]),
        ("bytes=200-", 416, b"status 416\n"),
    ],
)
def test_ranges(http_origin: HttpOrigin, asked: str, status: int, body: bytes) -> None:
    http_origin.put("/a", DATA)
    assert _get(http_origin, "/a", Range=asked) == (status, body)


def test_obstore_reads_it_and_every_request_is_counted(http_origin: HttpOrigin) -> None:
    http_origin.put("/dir/\u00e9 x", DATA)
    store = HTTPStore.from_url(http_origin.base_url, client_options={"allow_http": True})
    meta = obstore.head(store, "dir/\u00e9 x")
    got = obstore.get(store, "dir/\u00e9 x", options={"range": (5, 9), "if_match": meta["e_tag"]}).bytes()
    assert bytes(got) == DATA[5:9]
    assert (http_origin.count("/dir/\u00e9 x"), http_origin.count("/dir/\u00e9 x", "HEAD")) == (1, 1)


def test_a_condition_that_does_not_hold_is_412(http_origin: HttpOrigin) -> None:
    http_origin.put("/a", DATA)
    assert _get(http_origin, "/a", If_Match='"other"')[0] == 412


def test_faults_come_in_order_and_end(http_origin: HttpOrigin) -> None:
    http_origin.put("/a", DATA)
    http_origin.fail("/a", Fault(status=503, after=1, times=2))
    assert [_get(http_origin, "/a")[0] for _ in range(4)] == [200, 503, 503, 200]
    assert _get(http_origin, "/absent")[0] == 404


def test_a_short_body_and_a_reset(http_origin: HttpOrigin) -> None:
    http_origin.put("/a", DATA)
    http_origin.fail("/a", Fault(body_bytes=7, times=1))
    http_origin.fail("/a", Fault(reset=True, times=1))
    with pytest.raises(http.client.IncompleteRead) as short:
        _get(http_origin, "/a")
    assert short.value.partial == DATA[:7]
    with pytest.raises(ConnectionError):
        _get(http_origin, "/a")
    assert _get(http_origin, "/a") == (200, DATA)


def test_the_object_changes_after_some_requests(http_origin: HttpOrigin) -> None:
    http_origin.put("/a", b"one")
    http_origin.change_after("/a", 2, b"two")
    assert [_get(http_origin, "/a")[1] for _ in range(4)] == [b"one", b"one", b"two", b"two"]


def test_a_gate_holds_the_reply_until_the_test_opens_it(http_origin: HttpOrigin) -> None:
    http_origin.put("/a", DATA)
    http_origin.put("/b", DATA)
    gate = threading.Event()
    http_origin.fail("/a", Fault(gate=gate))
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(_get, http_origin, "/a")
        http_origin.await_requests("/a")
        assert _get(http_origin, "/b") == (200, DATA)
        assert not reply.done()
        gate.set()
        assert reply.result(timeout=10) == (200, DATA)
