"""What a node makes of bytes that no client of ours would send: an error for the sender, nothing for anybody else."""

from __future__ import annotations

import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shoal import errors
from shoal_core import frame, limits, verbs
from shoal_core.verbs import complain, dataset, evict, get, hello, inspect, listing, map, release, resolve, stat, view
from tests.faults import raw_client
from tests.faults.conftest import Connect
from tests.faults.raw_client import RawConnection
from tests.support import waiting
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 * limits.KIB


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node()


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, node: InProcessNode) -> str:
    return node.address if request.param == "unix" else node.tcp_address


@pytest.fixture
def url(tmp_path: Path) -> str:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(4 * BLOCK))
    return f"file://{file}"


def lives(node: InProcessNode, connect: Connect, url: str) -> None:
    """Others are served, over both doors, and nothing is held any more."""
    data = Path(url.removeprefix("file://")).read_bytes()
    for address in (node.address, node.tcp_address):
        with connect(address) as client:
            assert client.read(url) == data
    waiting.until(lambda: not node.node.state.leases.clients, "every connection ended")
    with node.node.step() as state:
        assert not any(state.index.leases), "nothing is leased"


def header(
    magic: bytes = b"SH", version: int = 1, kind: int = 12, request: int = 7, body: int = 1, payload: int = 0
) -> bytes:
    return struct.pack("<2sBBIII", magic, version, kind, request, body, payload)


@pytest.mark.parametrize(
    ("name", "sent", "says"),
    [
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "not a Shoal frame"),
        ("zeros", bytes(64), "not a Shoal frame"),
        ("huge body", header(body=limits.FRAME_BODY_BYTES_MAX + 1), "too large"),
        ("largest body", header(body=0xFFFFFFFF), "too large"),
        ("huge payload", header(payload=0xFFFFFFFF), "too large"),
        ("a payload", header(body=1, payload=5) + b"\x90abcde", "payload"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value[:3] and len(value) < 15 else "",
)
def test_what_is_no_frame_ends_the_connection_with_an_error(
    address: str, node: InProcessNode, connect: Connect, url: str, name: str, sent: bytes, says: str
) -> None:
    with raw_client.connected(address) as raw:
        raw.hello()
        raw.socket.sendall(sent)
        assert says in raw.failure()
        with pytest.raises((EOFError, ConnectionResetError)):
            raw.reply()
    lives(node, connect, url)


def test_random_bytes(address: str, node: InProcessNode, connect: Connect, url: str) -> None:
    chance = random.Random(11)
    for _ in range(100):
        with raw_client.connected(address) as raw:
            if chance.random() < 0.5:
                raw.hello()
            junk = chance.randbytes(chance.randrange(1, 3000))
            raw.socket.sendall(junk if chance.random() < 0.5 else b"SH\x01" + junk)
            raw.socket.shutdown(socket.SHUT_WR)
            with pytest.raises((EOFError, ConnectionResetError)):
                raw.replies_to_the_end()
    lives(node, connect, url)


def test_a_connection_that_ends_in_the_middle_of_a_frame(
    address: str, node: InProcessNode, connect: Connect, url: str
) -> None:
    whole = frame.encode(hello.KIND, 1, verbs.encode(hello.Request(os.urandom(16), hello.EVENTS, "raw")))
    for end in range(1, len(whole)):
        with raw_client.connected(address) as raw:
            raw.socket.sendall(whole[:end])
    lives(node, connect, url)


def test_a_frame_that_comes_byte_by_byte(address: str, node: InProcessNode, connect: Connect, url: str) -> None:
    with raw_client.connected(address) as raw:
        for byte in frame.encode(hello.KIND, 1, verbs.encode(hello.Request(os.urandom(16), hello.REQUESTS, "slow"))):
            raw.socket.sendall(bytes([byte]))
        assert raw.reply()[0].kind == hello.KIND | frame.REPLY
    lives(node, connect, url)


@pytest.mark.parametrize(
    ("version", "kind", "says"),
    [(0, 12, "version 0"), (9, 12, "version 9"), (1, 0, "unknown verb 0"), (1, 99, "unknown verb 99"),
     (1, 255, "unknown verb 255"), (1, 12 | 0x80, "unknown verb"), (1, 6, "not for a node")],
)  # fmt: skip
def test_another_version_or_verb_is_answered_and_the_connection_lives(
    address: str, version: int, kind: int, says: str
) -> None:
    with raw_client.connected(address) as raw:
        raw.hello()
        body = verbs.encode([[]])
        raw.socket.sendall(header(version=version, kind=kind, request=77, body=len(body)) + body)
        reply, text = raw.reply()
        assert reply.kind == frame.FAILURE and reply.request == 77 and says in text.decode("utf-8", "replace")
        assert raw.call(stat.KIND, stat.Request()).values["node"] == "node-1"


def test_nothing_is_answered_before_hello(address: str) -> None:
    with raw_client.connected(address) as raw:
        for kind, request in ((stat.KIND, stat.Request()), (map.KIND, map.Request(0))):
            with pytest.raises(errors.ProtocolError, match="hello"):
                raw.call(kind, request)
        raw.hello()
        with pytest.raises(errors.BadRequest, match="said already"):
            raw.hello()


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x90", b"\xff\xff\xff", b"\x91\x01", b"\x91" * 2000 + b"\x90", os.urandom(5000),
     msgspec.msgpack.encode({"a": 1}), msgspec.msgpack.encode([None] * 50), b"\xdd\xff\xff\xff\xff"],
    ids=["empty", "never used", "empty array", "bits", "a number", "deep", "random", "map", "nulls", "4 G elements"],
)  # fmt: skip
def test_a_body_that_is_not_the_verbs(
    address: str, node: InProcessNode, connect: Connect, url: str, body: bytes
) -> None:
    with raw_client.connected(address) as raw:
        raw.hello()
        for kind in verbs.VERBS:
            raw.socket.sendall(header(kind=kind, request=kind, body=len(body)) + body)
            reply, text = raw.reply()
            assert reply.request == kind
            # Some take no argument, and a number is an epoch.
            fits = not verbs.VERBS[kind].Request.__struct_fields__ or (kind == view.KIND and body == b"\x91\x01")
            known = fits and reply.kind == kind | frame.REPLY
            assert known or reply.kind == frame.FAILURE, (verbs.name(kind), text)
        assert raw.call(stat.KIND, stat.Request()).values["node"] == "node-1"
    lives(node, connect, url)


FAR = 0x7FFFFFFF
FINGERPRINT = b"nobody knows it."


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        (hello.KIND, hello.Request(b"short", hello.REQUESTS, "raw")),
        (hello.KIND, hello.Request(b"x" * 16, "boss", "raw")),
        (resolve.KIND, resolve.Request([resolve.Wanted("x://" + "y" * 100_000)], 1000)),
        (resolve.KIND, resolve.Request([resolve.Wanted("shoal://nobody/x")], 1000)),
        (resolve.KIND, resolve.Request([resolve.Wanted("file:///x", -5, "e")], 1000)),
        (resolve.KIND, resolve.Request([resolve.Wanted("file:///x", 1 << 62, "e")], 1000)),
        (resolve.KIND, resolve.Request([resolve.Wanted("\0")], 1000)),
        (resolve.KIND, resolve.Request([resolve.Wanted("file:///etc/hostname")], -1000)),
        (get.KIND, get.Request([FINGERPRINT], [get.Item(0, 0, 0, 1)], [], 1000, False)),
        (get.KIND, get.Request([b""], [], [], 1000, False)),
        (release.KIND, release.Request([(FAR, 1), (-1, -1), (0, 0)], [(FAR, 1, 1), (-1, 0, 5), (0, 0, -5)])),
        (map.KIND, map.Request(FAR)),
        (map.KIND, map.Request(-1)),
        (listing.KIND, listing.Request("file:///no/such/place", 0, 1000)),
        (listing.KIND, listing.Request("file:///", FAR, 1000)),
        (inspect.KIND, inspect.Request([b"", b"x" * 100])),
        (evict.KIND, evict.Request([b"", b"x" * 100])),
        (complain.KIND, complain.Request(FAR, 0)),
        (complain.KIND, complain.Request(-1, 0)),
        (dataset.KIND, dataset.Request("Not A Name", "file:///x", "s3fifo", None, None)),
        (dataset.KIND, dataset.Request("x", "nowhere", "s3fifo", None, None)),
        (dataset.KIND, dataset.Request("x", "file:///x", "lru", None, None)),
        (dataset.KIND, dataset.Request("x", "file:///x", "s3fifo", -1, None)),
        (dataset.KIND, dataset.Request("x", "file:///x", "s3fifo", None, float("inf"))),
        (dataset.KIND, dataset.Request("x", "file:///x", "s3fifo", None, -1.0)),
    ],
    ids=lambda value: type(value).__module__.rpartition(".")[2] if isinstance(value, msgspec.Struct) else "",
)
def test_a_request_with_impossible_values(
    address: str, node: InProcessNode, connect: Connect, url: str, kind: int, request_: Any
) -> None:
    with raw_client.connected(address) as raw:
        if kind != hello.KIND:
            raw.hello()
        raw.socket.sendall(frame.encode(kind, 5, verbs.encode(request_)))
        reply, text = raw.reply()
        said = text.decode("utf-8", "replace")
        assert reply.request == 5
        # Ours, not Python's: an error that names its class only would be one that nobody foresaw.
        assert reply.kind != frame.FAILURE or not any(word in said for word in ("Error:", "Invariant")), said
        if kind in (dataset.KIND, map.KIND, hello.KIND):
            assert reply.kind == frame.FAILURE
    lives(node, connect, url)


@pytest.mark.parametrize(
    "item",
    [get.Item(1, 0, 0, 1), get.Item(-1, 0, 0, 1), get.Item(0, 4, 0, 1), get.Item(0, -1, 0, 1),
     get.Item(0, 0, -1, 1), get.Item(0, 0, 0, 0), get.Item(0, 0, 0, -1), get.Item(0, 0, BLOCK, 1),
     get.Item(0, 0, 0, BLOCK + 1), get.Item(0, 1 << 60, 0, 1)],
)  # fmt: skip
def test_a_range_outside_its_block(
    address: str, node: InProcessNode, connect: Connect, url: str, item: get.Item
) -> None:
    with raw_client.connected(address) as raw:
        raw.hello()
        found = raw.resolve(url)
        good = get.Item(0, 0, 0, 1)
        with pytest.raises(errors.BadRequest):
            raw.call(get.KIND, get.Request([found.fingerprint], [good, item], [], 1000, False))
        assert raw.get(found, range(1), deadline_ms=5000)
    lives(node, connect, url)


@pytest.mark.parametrize(
    "ahead",
    [get.Ahead(1, 0, 1), get.Ahead(-1, 0, 1), get.Ahead(0, -5, 3), get.Ahead(0, 1 << 60, 1), get.Ahead(0, 0, 1 << 60),
     get.Ahead(0, 2, -1)],
)  # fmt: skip
def test_a_read_ahead_of_what_is_not_there_harms_nobody(
    address: str, node: InProcessNode, connect: Connect, url: str, ahead: get.Ahead
) -> None:
    """Above all not the blocks that were asked for with it, which others will ask for as well."""
    with raw_client.connected(address) as raw:
        raw.hello()
        found = raw.resolve(url)
        request = get.Request([found.fingerprint], [get.Item(0, 3, 0, 1)], [ahead], 5000, False)
        try:
            answers = raw.call(get.KIND, request).items
        except errors.BadRequest:
            answers = raw.get(found, range(3, 4), deadline_ms=5000)
        assert not isinstance(answers[0], (get.Failed, get.Bypass)), answers[0]
    lives(node, connect, url)


def test_more_than_a_batch_may_hold(address: str, node: InProcessNode, connect: Connect, url: str) -> None:
    with raw_client.connected(address) as raw:
        raw.hello()
        found = raw.resolve(url)
        many = [get.Item(0, 0, 0, BLOCK)] * (limits.BATCH_ITEMS_MAX + 1)
        with pytest.raises(errors.BadRequest, match=str(limits.BATCH_ITEMS_MAX)):
            raw.call(get.KIND, get.Request([found.fingerprint], many, [], 1000, True))
        urls = [resolve.Wanted(url)] * (limits.BATCH_ITEMS_MAX + 1)
        with pytest.raises(errors.BadRequest, match=str(limits.BATCH_ITEMS_MAX)):
            raw.call(resolve.KIND, resolve.Request(urls, 1000))
    lives(node, connect, url)


def test_more_than_a_frame_may_hold(address: str, in_process_node: MakeInProcess, connect: Connect, url: str) -> None:
    """The largest batch of the largest blocks is 64 GiB: refused, and what was held for it is free again."""
    node = in_process_node({"fill": {"block_size_bytes": "256KiB"}})
    where = node.address if address.startswith("unix") else node.tcp_address
    with raw_client.connected(where) as raw:
        raw.hello()
        found = raw.resolve(url)
        many = [get.Item(0, 0, 0, 4 * BLOCK)] * limits.BATCH_ITEMS_MAX
        with pytest.raises(errors.ProtocolError, match="too large"):
            raw.call(get.KIND, get.Request([found.fingerprint], many, [], 5000, True))
    lives(node, connect, url)


def test_more_than_the_cache_holds_in_one_request(
    address: str, node: InProcessNode, connect: Connect, url: str, tmp_path: Path
) -> None:
    """Some blocks are given, for the others the reader is sent to the origin, in time."""
    (tmp_path / "large").write_bytes(os.urandom(60 * limits.MIB))
    with raw_client.connected(address) as raw:
        raw.hello()
        found = raw.resolve(f"file://{tmp_path / 'large'}")
        answers = raw.get(found, range(found.size // BLOCK))
        bypassed = sum(isinstance(answer, get.Bypass) for answer in answers)
        assert 60 * 16 - 48 * 16 <= bypassed < 60 * 16
        assert not any(isinstance(answer, get.Failed) for answer in answers)
        assert raw.call(stat.KIND, stat.Request()).values["fallbacks"]["bypass"] == bypassed
    lives(node, connect, url)


def test_a_client_that_never_reads_its_replies(address: str, node: InProcessNode, connect: Connect, url: str) -> None:
    """It holds up itself alone; its blocks are free when it goes."""
    with raw_client.connected(address) as raw:
        raw.hello()
        found = raw.resolve(url)
        items = [get.Item(0, block, 0, BLOCK) for block in range(4)]
        request = frame.encode(get.KIND, 9, verbs.encode(get.Request([found.fingerprint], items, [], 5000, True)))
        raw.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            raw.socket.sendall(request * 100_000)
        client = connect(node.address)
        assert client.read(url) == Path(url.removeprefix("file://")).read_bytes()
        client.close()
    lives(node, connect, url)


def test_two_hundred_connections_that_say_nothing(
    address: str, node: InProcessNode, connect: Connect, url: str
) -> None:
    idle = [RawConnection(address) for _ in range(200)]
    try:
        lives(node, connect, url)
    finally:
        for raw in idle:
            raw.close()
    waiting.until(lambda: node.server.idle_s() > 0, "the node saw them go")
