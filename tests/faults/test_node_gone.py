"""Readers whose node dies, hangs, drains or comes back: right bytes or a clear error, within the deadline."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import shoal
from shoal import errors
from shoal_core import limits
from tests.faults.conftest import Connect
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.running_node import MakeProcess, NodeProcess

BLOCK = 64 * limits.KIB
SAID = "reading from the origin directly"


@pytest.fixture
def node(node_process: MakeProcess) -> NodeProcess:
    return node_process({"fill": {"range_bytes_max": BLOCK}})


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if SAID in record.getMessage()]


def comes_back(client: shoal.Client, url: str, data: bytes) -> None:
    """The client finds its node again: every read right on the way, and in the end one that the node answers."""

    def through_the_node() -> bool:
        before = client.stats().hits["direct"]
        assert client.read(url) == data
        return client.stats().hits["direct"] == before

    waiting.until(through_the_node, "the node is used again")


def test_killed_in_the_middle_of_a_read(
    node: NodeProcess, connect: Connect, http_origin: HttpOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    data = os.urandom(100 * BLOCK + 17)
    url = http_origin.put("/large", data)
    http_origin.fail("/large", Fault(gate=gate, after=40))
    client = connect(node.address)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(client.read, url)
        http_origin.await_requests("/large", 41)
        node.kill()
        gate.set()
        assert reading.result(20) == data
    assert client.read(url) == data
    assert len(said(caplog)) == 1, "said once"
    stats = client.stats()
    assert stats.hits["direct"] > 60 and stats.fallbacks == stats.hits["direct"]


def test_killed_while_it_sends(
    node: NodeProcess, connect: Connect, http_origin: HttpOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """Over TCP, so that the end comes in the middle of a payload now and then."""
    data = os.urandom(100 * BLOCK + 17)
    url = http_origin.put("/large", data)
    clients = [connect(node.tcp_address) for _ in range(3)]
    assert clients[0].read(url) == data
    under_way = threading.Barrier(4)

    def read_on(client: shoal.Client) -> int:
        under_way.wait(10)
        count = 0
        while not client.stats().hits["direct"]:
            assert client.read(url) == data
            count += 1
        assert client.read(url) == data
        return count

    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(read_on, client) for client in clients]
        under_way.wait(10)
        node.kill()
        assert all(read.result(30) for read in reads)
    assert len(said(caplog)) == 3, "each client says it once"


def test_without_node_and_without_origin(
    node: NodeProcess, connect: Connect, http_origin: HttpOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    url = http_origin.put("/data", os.urandom(3 * BLOCK))
    client = connect(node.address)
    info = client.info(url)
    node.kill()
    http_origin.fail("/data", Fault(status=503))
    started = time.monotonic()
    with pytest.raises((errors.OriginError, errors.DeadlineExceeded), match="/data"):
        client.read(info, deadline_s=3)
    assert time.monotonic() - started < 4
    with pytest.raises(errors.NodeGone):
        client.node_stats()
    with pytest.raises(errors.NodeGone, match="nobody-knows"):
        client.read("shoal://nobody-knows/data")
    with pytest.raises(errors.NotFound, match="/missing"):
        client.read(http_origin.url("/missing"))


def test_what_is_held_outlives_the_node(node: NodeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    data = os.urandom(3 * BLOCK)
    url = http_origin.put("/data", data)
    client = connect(node.address)
    with client.view(url) as view:
        node.kill()
        waiting.until(lambda: client.terms() is None, "the client noticed")
        assert b"".join(view.parts) == data, "a dead node writes no more"
    assert client.read(url) == data


def test_a_node_that_hangs(node: NodeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    """Calls end at their deadlines, not before and not much later; what is held is read as ever."""
    held, other = os.urandom(2 * BLOCK), os.urandom(2 * BLOCK)
    held_url, other_url = http_origin.put("/held", held), http_origin.put("/other", other)
    old = connect(node.address)
    assert old.read(held_url, 0, BLOCK) == held[:BLOCK]
    calls: list[tuple[str, Callable[[float], object]]] = [
        ("read", lambda seconds: old.read(other_url, deadline_s=seconds)),
        ("read over tcp", lambda seconds: connect(node.tcp_address).read(other_url, deadline_s=seconds)),
        ("read by a new client", lambda seconds: connect(node.address).read(other_url, deadline_s=seconds)),
        ("read_many", lambda seconds: old.read_many([other_url, held_url], deadline_s=seconds)),
        ("info", lambda seconds: old.info(other_url, deadline_s=seconds)),
        ("list", lambda seconds: old.list(f"{http_origin.base_url}/", deadline_s=seconds)),
    ]
    node.signal(signal.SIGSTOP)
    try:
        for name, call in calls:
            started = time.monotonic()
            with pytest.raises((errors.DeadlineExceeded, errors.NodeGone)):
                call(0.6)
            assert time.monotonic() - started < 1.1, name
        assert old.stats().hits["shared memory"] == 0
    finally:
        node.signal(signal.SIGCONT)
    comes_back(old, other_url, other)
    assert connect(node.address).read(held_url) == held


def test_held_blocks_of_a_node_that_hangs(node: NodeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    data = os.urandom(BLOCK)
    url = http_origin.put("/held", data)
    client = connect(node.address)
    client.read(url)
    node.signal(signal.SIGSTOP)
    try:
        for _ in range(1000):
            assert client.read(url, 5, 100, deadline_s=0.5) == data[5:105]
    finally:
        node.signal(signal.SIGCONT)
    assert client.stats().hits["shared memory"] == 1000


def test_a_short_deadline_does_not_wait_for_a_long_one(
    node: NodeProcess, connect: Connect, http_origin: HttpOrigin
) -> None:
    """Two threads of one client that is not connected yet."""
    url = http_origin.put("/data", os.urandom(BLOCK))
    client = connect(node.address)
    node.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        try:
            patient = pool.submit(client.read, url, deadline_s=15)
            waiting.until(patient.running, "the patient one asks")
            for _ in range(5):
                started = time.monotonic()
                with pytest.raises((errors.DeadlineExceeded, errors.NodeGone)):
                    client.read(url, deadline_s=0.3)
                assert time.monotonic() - started < 0.9
        finally:
            node.signal(signal.SIGCONT)
        assert len(patient.result(20)) == BLOCK


def test_a_node_that_was_restarted(
    node: NodeProcess, connect: Connect, http_origin: HttpOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    data = os.urandom(10 * BLOCK)
    url = http_origin.put("/data", data)
    clients = [connect(node.address), connect(node.tcp_address)]
    node.config["doors"]["tcp"] = node.tcp_address.removeprefix("tcp:")
    for client in clients:
        assert client.read(url) == data
    for _ in range(2):
        node.kill()
        assert clients[0].read(url) == data
        node.config_file.write_text(json.dumps(node.config))
        node.start()
        for client in clients:
            comes_back(client, url, data)
    assert node.status()["clients"] == 3, "both, and the one that asks"
    assert node.status()["reads"]["shared_memory"]["origin"] == 10
    assert len(said(caplog)) <= 2


def test_a_restart_that_nobody_noticed(node: NodeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    """The first read after it goes through the new node, not to the origin."""
    data = os.urandom(3 * BLOCK)
    url = http_origin.put("/data", data)
    client = connect(node.address)
    client.read(url)
    node.stop()
    node.start()
    waiting.until(lambda: client.terms() is not None, "connected again")
    assert client.read(url) == data
    assert client.stats().hits["direct"] == 0


def test_it_ends_in_order_with_readers_connected(node: NodeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    data = os.urandom(3 * BLOCK)
    url = http_origin.put("/data", data)
    client = connect(node.address)
    with client.view(url) as view:
        started = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - started < 8
        assert b"".join(view.parts) == data
    assert not os.path.exists(node.socket_path)
    assert "Traceback" not in node.log and "never retrieved" not in node.log


def test_it_ends_in_order_while_an_origin_stalls(node: NodeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    gate = threading.Event()
    data = os.urandom(BLOCK)
    url = http_origin.put("/data", data)
    http_origin.fail("/data", Fault(gate=gate, times=1))
    client = connect(node.address)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(client.read, url)
        http_origin.await_requests("/data")
        assert node.stop() == 0
        assert reading.result(20) == data, "from the origin, without the node"
        gate.set()
    assert "Traceback" not in node.log and "never retrieved" not in node.log


def test_draining(node_process: MakeProcess, connect: Connect, http_origin: HttpOrigin) -> None:
    """No new reads are taken, they go to the origin; what runs is finished."""
    node = node_process({"doors": {"control": "127.0.0.1:0"}})
    waiting.until(lambda: "control:" in str(node.status()["addresses"]), "the control door is open")
    control = next(a for a in node.status()["addresses"] if a.startswith("control:")).removeprefix("control:")
    gate = threading.Event()
    data, late = os.urandom(2 * BLOCK), os.urandom(BLOCK)
    url, late_url = http_origin.put("/data", data), http_origin.put("/late", late)
    http_origin.fail("/late", Fault(gate=gate, times=1))
    client, other = connect(node.address), connect(node.address)
    other.info(url)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.read, late_url)
        http_origin.await_requests("/late")
        with urllib.request.urlopen(urllib.request.Request(f"http://{control}/drain", method="POST")) as answer:
            assert answer.status == 202
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"http://{control}/readyz")
        assert other.read(url) == data
        assert other.stats().hits["direct"] == 2
        gate.set()
        assert running.result(20) == late
        assert client.stats().hits["direct"] == 0
    assert node.status()["draining"] is True
    assert node.stop() == 0
