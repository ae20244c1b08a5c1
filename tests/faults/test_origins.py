"""What readers see when an origin fails: an error that names the URL, in time, and nothing once it is well again."""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import shoal
from shoal import errors
from shoal_core import limits
from tests.faults.conftest import Connect
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess
from tests.support.s3_server import S3Server

BLOCK = 64 * limits.KIB
BOTH = ("GET", "HEAD")


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node()


@pytest.fixture
def client(node: InProcessNode, connect: Connect) -> shoal.Client:
    return connect(node.address)


@pytest.fixture
def closed_port() -> int:
    """A port of this host where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fills(client: shoal.Client, scheme: str = "http") -> dict[str, int]:
    return client.node_stats()["fills"].get(scheme, {})


def served(client: shoal.Client, http_origin: HttpOrigin) -> None:
    """The node goes on: another object is read whole."""
    data = os.urandom(3 * BLOCK + 17)
    assert client.read(http_origin.put("/another", data)) == data


def test_nobody_listens_at_the_origin(client: shoal.Client, http_origin: HttpOrigin, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/data"
    started = time.monotonic()
    with pytest.raises(errors.OriginError, match="refused") as caught:
        client.read(url)
    assert url in str(caught.value) and isinstance(caught.value, OSError)
    assert time.monotonic() - started < 5
    served(client, http_origin)


def test_the_origin_has_no_address(client: shoal.Client, http_origin: HttpOrigin) -> None:
    with pytest.raises((errors.OriginError, errors.DeadlineExceeded), match=r"no-such-host\.invalid"):
        client.read("http://no-such-host.invalid/data", deadline_s=8)
    served(client, http_origin)


@pytest.mark.parametrize("url", ["ftpx://host/data", "data", "/etc/hostname", "s3:///key", "file://etc/hostname", ""])
def test_a_url_that_nothing_reads(client: shoal.Client, http_origin: HttpOrigin, url: str) -> None:
    with pytest.raises((errors.BadRequest, errors.NotFound)) as caught:
        client.read(url)
    assert url.partition(":")[0] in str(caught.value)
    served(client, http_origin)


@pytest.mark.parametrize("status", [401, 403])
def test_the_origin_refuses(client: shoal.Client, http_origin: HttpOrigin, status: int) -> None:
    data = os.urandom(2 * BLOCK)
    url = http_origin.put("/secret", data)
    http_origin.fail("/secret", Fault(status=status, methods=BOTH))
    with pytest.raises(errors.Forbidden, match=str(status)) as caught:
        client.read(url)
    assert url in str(caught.value) and isinstance(caught.value, PermissionError)
    http_origin.heal("/secret")
    assert client.read(url) == data


def test_s3_refuses_a_wrong_key(in_process_node: MakeInProcess, connect: Connect, s3_server: S3Server) -> None:
    url = s3_server.put("refused", "data", b"bytes")
    options = {**s3_server.options, "secret_access_key": "wrong", "session_token": ""}
    client = connect(in_process_node({"origins": {"s3://refused": options}}).address)
    with pytest.raises(errors.Forbidden, match="403") as caught:
        client.read(url)
    assert url in str(caught.value)
    assert "wrong" not in str(caught.value) and s3_server.access_key not in str(caught.value)


def test_no_such_object(client: shoal.Client, http_origin: HttpOrigin) -> None:
    url = http_origin.url("/missing")
    for _ in range(2):
        with pytest.raises(errors.NotFound, match="/missing") as caught:
            client.read(url)
        assert isinstance(caught.value, FileNotFoundError)
    http_origin.put("/missing", b"now there")
    assert client.read(url) == b"now there", "that it was missing is not remembered"


def test_no_such_object_on_s3(in_process_node: MakeInProcess, connect: Connect, s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket("lacking")
    origins = {bucket: s3_server.options, "s3://no-such-bucket": s3_server.options}
    client = connect(in_process_node({"origins": origins}).address)
    with pytest.raises(errors.NotFound, match="s3://lacking/missing"):
        client.read(f"{bucket}/missing")
    with pytest.raises(errors.NotFound, match="s3://no-such-bucket/missing"):
        client.read("s3://no-such-bucket/missing")


def test_an_object_that_vanished_after_it_was_opened(client: shoal.Client, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/data", os.urandom(4 * BLOCK))
    info, first = client.info(url), client.read(url, 0, BLOCK)
    http_origin.delete("/data")
    with pytest.raises(errors.NotFound, match="/data"):
        client.read(url, 2 * BLOCK, BLOCK)
    assert client.read(info, 0, BLOCK) == first, "what is cached of that version is not lost"
    with pytest.raises(errors.NotFound, match="/data"):
        client.read(url, 0, BLOCK)


def test_an_object_that_changes_between_ranges(client: shoal.Client, http_origin: HttpOrigin) -> None:
    """Never a mix of two versions; who opens it again gets the new one, at once."""
    old, new = os.urandom(6 * BLOCK), os.urandom(5 * BLOCK + 100)
    url = http_origin.put("/data", old)
    assert client.read(url, 0, 2 * BLOCK) == old[: 2 * BLOCK]
    http_origin.put("/data", new)
    with pytest.raises(errors.ObjectChanged, match="/data") as caught:
        client.read(url)
    assert url in str(caught.value)
    assert client.read(url) == new
    assert client.info(url).size == len(new)


def test_s3_object_that_is_overwritten_between_blocks(
    in_process_node: MakeInProcess, connect: Connect, s3_server: S3Server
) -> None:
    """The same length, so that only the etag tells."""
    old, new = os.urandom(6 * BLOCK), os.urandom(6 * BLOCK)
    url = s3_server.put("changing", "data", old)
    node = in_process_node({"origins": {"s3://changing": s3_server.options}})
    client, late = connect(node.address), connect(node.address)
    info = late.info(url)
    assert client.read(url, BLOCK, 100) == old[BLOCK : BLOCK + 100]
    s3_server.put("changing", "data", new)
    with pytest.raises(errors.ObjectChanged, match="s3://changing/data"):
        client.read(url, 3 * BLOCK, 10)
    assert client.read(url) == new
    with pytest.raises(errors.ObjectChanged):
        late.read(info, 4 * BLOCK, 10)  # exactly that version was asked for, and it is gone
    assert late.read(info, BLOCK, 100) == old[BLOCK : BLOCK + 100], "but for what is cached of it"
    assert late.read(url, 3 * BLOCK, 10) == new[3 * BLOCK : 3 * BLOCK + 10]


def test_a_change_in_the_middle_of_many_reads_hits_only_its_object(
    client: shoal.Client, http_origin: HttpOrigin
) -> None:
    data = [os.urandom(3 * BLOCK) for _ in range(4)]
    urls = [http_origin.put(f"/part-{number}", part) for number, part in enumerate(data)]
    client.infos(urls)
    http_origin.put("/part-2", os.urandom(3 * BLOCK))
    found = client.read_many(urls, return_errors=True)
    assert found[:2] + found[3:] == data[:2] + data[3:]
    assert isinstance(found[2], errors.ObjectChanged)


def test_a_body_that_ends_early(client: shoal.Client, http_origin: HttpOrigin) -> None:
    data = os.urandom(4 * BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(body_bytes=1000))
    with pytest.raises(errors.OriginError, match="/data"):
        client.read(url)
    assert client.inspect([url])[0].block_count == 0, "no part of it counts as cached"
    http_origin.heal("/data")
    assert client.read(url) == data
    assert fills(client)["OriginError"] == 4 and fills(client)["ok"] == 4


def test_a_connection_that_is_reset(client: shoal.Client, http_origin: HttpOrigin) -> None:
    data = os.urandom(2 * BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(reset=True, times=1))
    with pytest.raises(errors.OriginError, match="/data"):
        client.read(url, 0, 10)
    assert client.read(url) == data


def test_server_errors_pass_unseen_within_the_retries(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin
) -> None:
    client = connect(in_process_node({"fill": {"retries": 3}}).address)
    data = os.urandom(BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(status=503, times=2))
    http_origin.fail("/data", Fault(status=500, times=1, methods=("HEAD",)))
    assert client.read(url) == data
    assert http_origin.count("/data") == 3 and http_origin.count("/data", "HEAD") == 2
    assert fills(client) == {"ok": 1}


def test_server_errors_beyond_the_retries(client: shoal.Client, http_origin: HttpOrigin) -> None:
    data = os.urandom(BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(status=503))
    with pytest.raises(errors.OriginError, match="503") as caught:
        client.read(url)
    assert url in str(caught.value)
    http_origin.heal("/data")
    assert client.read(url) == data, "the next read succeeds at once"


def test_one_bad_block_of_an_object(in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    """Its reader is told; the blocks that came are kept and not asked for again."""
    client = connect(in_process_node({"fill": {"range_bytes_max": BLOCK}}).address)
    data = os.urandom(4 * BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(status=500, after=2, times=1))
    with pytest.raises(errors.OriginError, match="/data"):
        client.read(url)
    assert client.read(url) == data
    assert http_origin.count("/data") == 5


def test_everybody_who_waits_for_a_failed_fill_is_told(
    node: InProcessNode, connect: Connect, http_origin: HttpOrigin
) -> None:
    """One request, one failure, as many errors as readers, and the next one tries again."""
    gate = threading.Event()
    data = os.urandom(BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(status=500, gate=gate, times=1))
    clients = [connect(node.address) for _ in range(6)]
    for client in clients:
        client.info(url)
    with ThreadPoolExecutor(6) as pool:
        reads = [pool.submit(client.read, url) for client in clients]
        http_origin.await_requests("/data")
        _until_all_wait(node, 6)
        gate.set()
        assert [type(read.exception(10)) for read in reads] == [errors.OriginError] * 6
    assert http_origin.count("/data") == 1
    assert clients[0].read(url) == data


def _until_all_wait(node: InProcessNode, count: int) -> None:
    from tests.support import waiting

    waiting.until(
        lambda: sum(len(members) - 1 for members in node.node.arrivals._flights._members.values()) == count, "all wait"
    )


def test_an_origin_that_stalls(
    client: shoal.Client, node: InProcessNode, connect: Connect, http_origin: HttpOrigin
) -> None:
    """The reader's deadline holds; the fill goes on, and later readers get the bytes of that very request."""
    gate = threading.Event()
    data = os.urandom(2 * BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(gate=gate, times=1))
    client.info(url)
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="/data") as caught:
        client.read(url, 0, 10, deadline_s=0.5)
    assert 0.4 < time.monotonic() - started < 1.5
    assert isinstance(caught.value, TimeoutError)
    served(client, http_origin)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(connect(node.address).read, url, 0, 10)
        _until_all_wait(node, 2)  # the one that gave up is on the list still
        gate.set()
        assert late.result(10) == data[:10]
    assert client.read(url, 0, 10) == data[:10]
    assert http_origin.count("/data") == 1


def test_an_origin_that_stalls_at_the_first_question(client: shoal.Client, http_origin: HttpOrigin) -> None:
    gate = threading.Event()
    url = http_origin.put("/data", b"bytes")
    http_origin.fail("/data", Fault(gate=gate, methods=("HEAD",)))
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded):
        client.read(url, deadline_s=0.5)
    assert time.monotonic() - started < 1.5
    served(client, http_origin)
    http_origin.heal("/data")
    gate.set()
    assert client.read(url) == b"bytes"


def test_a_fill_ends_at_its_own_timeout(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin
) -> None:
    """So that readers with long deadlines do not wait for a request that will never be answered."""
    client = connect(in_process_node({"fill": {"timeout_s": 0.5}}).address)
    gate = threading.Event()
    url = http_origin.put("/data", b"bytes")
    http_origin.fail("/data", Fault(gate=gate, times=1))
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match=r"/data.*0\.5 s"):
        client.read(url, deadline_s=20)
    assert time.monotonic() - started < 5
    assert client.read(url) == b"bytes"
    assert fills(client) == {"DeadlineExceeded": 1, "ok": 1}
    gate.set()


def test_what_is_cached_outlives_its_origin(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beyond the time that a URL's version is trusted: it is then served as stale, and counted."""
    monkeypatch.setattr(limits, "RESOLVE_FRESH_S", 0.0)
    node = in_process_node()
    data = os.urandom(3 * BLOCK)
    url = http_origin.put("/data", data)
    assert connect(node.address).read(url) == data
    http_origin.fail("/data", Fault(status=500, methods=BOTH))
    client = connect(node.address)
    assert client.read(url) == data
    assert client.node_stats()["fallbacks"]["stale_resolve"] == 1
    http_origin.heal("/data")
    http_origin.put("/data", b"new")
    assert connect(node.address).read(url) == b"new", "stale only while it must be"


@pytest.mark.parametrize(
    ("name", "settings"),
    [("endpoint", {"endpoint": "nonsense"}), ("unknown option", {"no_such_option": "1"})],
)
def test_an_origin_with_wrong_options(
    in_process_node: MakeInProcess, connect: Connect, http_origin: HttpOrigin, name: str, settings: dict[str, Any]
) -> None:
    client = connect(in_process_node({"origins": {"s3://bucket": settings}}).address)
    with pytest.raises(errors.ShoalError, match="s3://bucket"):
        client.read("s3://bucket/key", deadline_s=5)
    served(client, http_origin)
