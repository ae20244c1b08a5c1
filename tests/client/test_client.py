"""What a client gives back, over a real node and every door: the bytes, in the order asked, or a clear error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shoal
from shoal import errors
from shoal.client import Client
from shoal_core import limits
from tests.support import waiting
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.objects import MakeObject
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 << 10


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node({"dram": {"budget_bytes": "8MiB"}})


@pytest.fixture(params=["memory", "unix", "tcp"])
def client(request: pytest.FixtureRequest, node: InProcessNode) -> Iterator[Client]:
    """By every door."""
    addresses = {"memory": node.memory, "unix": node.address, "tcp": node.tcp_address}
    with shoal.connect(addresses[request.param], deadline_s=20) as connected:
        yield connected


# Ranges.

_BORDERS = st.sampled_from(
    [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK, 4096, 200_000, 10**9]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=_BORDERS | st.integers(0, 250_000), length=st.none() | _BORDERS | st.integers(0, 250_000))
def test_any_range_is_what_slicing_gives(
    client: Client, make_object: MakeObject, offset: int, length: int | None
) -> None:
    url, data = make_object(3 * BLOCK + 777)
    expected = data[offset:] if length is None else data[offset : offset + length]
    assert client.read(url, offset, length) == expected
    with client.view(url, offset, length) as view:
        assert b"".join(view.parts) == expected and len(view) == len(expected)
        assert all(part.readonly and part.format == "B" for part in view)
    buffer = bytearray(b"\xee" * (len(expected) + 10))
    assert client.read_into(url, memoryview(buffer)[5:-5], offset) == len(expected)
    assert buffer == b"\xee" * 5 + expected + b"\xee" * 5
    assert client.read_many([(url, offset, length), url, (url, offset, None)]) == [expected, data, data[offset:]]


@pytest.mark.parametrize(
    ("size", "offset"), [(0, 0), (0, 5), (10, 10), (10, 11), (BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK)]
)
def test_past_the_end_there_is_nothing(client: Client, make_object: MakeObject, size: int, offset: int) -> None:
    url, _ = make_object(size)
    for length in (None, 0, 1, BLOCK):
        assert client.read(url, offset, length) == b""
        with client.view(url, offset, length) as view:
            assert (view.parts, bytes(view.memory)) == ([], b"")
        assert client.read_many([(url, offset, length)]) == [b""]
    assert client.read_into(url, bytearray(10), offset) == 0


@pytest.mark.parametrize(("offset", "length"), [(-1, None), (-1, 5), (0, -1), (5, -3), (-5, -5)])
@pytest.mark.parametrize("warm", [False, True])
def test_negative_numbers_are_no_range(
    client: Client, make_object: MakeObject, offset: int, length: int | None, warm: bool
) -> None:
    url, _ = make_object(1000)
    if warm:
        client.read(url)
    for call in (client.read, client.view):
        with pytest.raises(errors.BadRequest, match="negative"):
            call(url, offset, length)
    with pytest.raises(errors.BadRequest, match="negative"):
        client.read_many([url, (url, offset, length)])
    if length is None:
        with pytest.raises(errors.BadRequest, match="negative"):
            client.read_into(url, bytearray(1), offset)


def test_buffers_of_any_kind_are_filled(client: Client, make_object: MakeObject) -> None:
    np = pytest.importorskip("numpy")
    url, data = make_object(BLOCK + 1000)
    array = np.zeros(100, dtype=np.int64)
    assert client.read_into(url, array, 3) == 800
    assert array.tobytes() == data[3:803]
    with pytest.raises((TypeError, ValueError, BufferError)):
        client.read_into(url, b"read-only")
    assert client.read(url) == data


# Many at once.


def test_many_come_in_the_order_asked(client: Client, make_object: MakeObject) -> None:
    objects = [make_object(size, f"o{size}") for size in (0, 1, 1000, BLOCK, BLOCK + 1, 5 * BLOCK)]
    wanted = [(url, start, length) for url, _ in objects for start in (0, 1, 70_000) for length in (None, 10)] * 3
    expected = [
        data[start:] if length is None else data[start : start + length]
        for _, data in objects
        for start in (0, 1, 70_000)
        for length in (None, 10)
    ] * 3
    for _ in range(2):
        assert client.read_many(wanted) == expected
    assert client.read_many([]) == []


def test_more_than_one_request_takes(client: Client, make_object: MakeObject) -> None:
    url, data = make_object(3 * BLOCK)
    wanted = [(url, position % len(data), 3) for position in range(0, 3 * limits.BATCH_ITEMS_MAX, 2)]
    assert client.read_many(wanted) == [data[start : start + 3] for _, start, _ in wanted]


def test_errors_stand_in_their_places_or_the_first_is_raised(client: Client, make_object: MakeObject) -> None:
    (good, data), (missing, _) = make_object(1000), make_object(0, "missing")
    Path(missing.removeprefix("file://")).unlink()
    wanted = [good, missing, (good, 0, -1), "gopher://x/y", (good, 5, 5)]
    found = client.read_many(wanted, return_errors=True)
    assert (found[0], found[4]) == (data, data[5:10])
    assert [type(error) for error in found[1:4]] == [errors.NotFound, errors.BadRequest, errors.BadRequest]
    assert missing in str(found[1])
    with pytest.raises(FileNotFoundError):
        client.read_many(wanted)
    for call in (client.read, client.view, client.info, client.open, client.prefetch):
        with pytest.raises(errors.NotFound, match="missing"):
            call(missing)


def test_an_error_of_the_origin_in_one_of_many(client: Client, http_origin: HttpOrigin) -> None:
    good, bad = http_origin.put("/good", b"g" * 10), http_origin.put("/bad", b"b" * 10)
    http_origin.fail("/bad", Fault(status=403))
    first, second, third = client.read_many([good, bad, good], return_errors=True)
    assert (first, third) == (b"g" * 10, b"g" * 10)
    assert isinstance(second, errors.Forbidden)


# What there is.


def test_info_lists_and_residency(client: Client, make_object: MakeObject) -> None:
    objects = {name: make_object(size, name) for name, size in {"a/1": 10, "a/2": 3 * BLOCK, "b": 0}.items()}
    base = objects["b"][0].removesuffix("b")
    found = client.list(base)
    assert sorted((info.url, info.size) for info in found) == sorted((url, len(data)) for url, data in objects.values())
    for info in found:
        assert client.info(info.url).fingerprint == info.fingerprint
        assert client.read(info) == client.read(info.url) == Path(info.url.removeprefix("file://")).read_bytes()
    infos = client.infos([objects["a/1"][0], base + "nothing"])
    assert isinstance(infos[0], shoal.ObjectInfo) and isinstance(infos[1], errors.NotFound)
    residency = client.inspect([objects["a/2"][0], objects["b"][0]])
    assert [(found.block_count, found.dram_bytes, found.disk_bytes) for found in residency] == [
        (3, 3 * BLOCK, 0),
        (0, 0, 0),
    ]
    assert client.evict(objects["a/2"][0]) == 3
    assert client.inspect([objects["a/2"][0]])[0].block_count == 0
    assert client.evict(base) == 1, "what is left below the prefix"
    with pytest.raises(errors.NotFound):
        client.inspect([base + "nothing"])


def test_datasets_by_name(client: Client, make_object: MakeObject) -> None:
    url, data = make_object(1000, "folder/file")
    client.declare_dataset("mine", url.removesuffix("/file"))
    assert client.read("shoal://mine/file") == data
    assert [info.url for info in client.list("shoal://mine")] == ["shoal://mine/file"]
    with pytest.raises(errors.NotFound, match="mine"):
        client.read("shoal://other/file")
    with pytest.raises((errors.BadRequest, errors.ConfigError), match="eviction"):
        client.declare_dataset("bad", url, eviction="lru")
    with pytest.raises((errors.BadRequest, errors.ConfigError), match="name"):
        client.declare_dataset("Bad Name", url)


def test_a_version_that_was_named_is_the_version_that_is_read(client: Client, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/data", b"old" * 100)
    info = client.info(url)
    assert client.read(info) == b"old" * 100
    http_origin.put("/data", b"new" * 200)
    assert client.read(info) == b"old" * 100, "it is cached"
    client.evict(url)
    with pytest.raises(errors.ObjectChanged):
        client.read(info)
    assert client.read(url) == b"new" * 200


def test_urls_of_odd_names(client: Client, make_object: MakeObject) -> None:
    for name in ("späce and ü", "per%20cent", "hash#tag", "quest?ion", "日本/ ", "a" * 200):
        url, data = make_object(100, name)
        assert client.read(url) == data
        assert client.list(url.rpartition("/")[0] + "/"), name
    bad = "file:///tmp/\udc80"
    for call in (client.read, client.list, client.info):
        with pytest.raises(errors.BadRequest, match="Unicode"):
            call(bad)
    assert client.read_many([url, bad], return_errors=True)[0] == data


# Time.


@pytest.mark.parametrize("deadline_s", [0, -1, 0.0])
def test_a_deadline_of_nothing_is_refused(client: Client, make_object: MakeObject, deadline_s: float) -> None:
    url, _ = make_object(10)
    with pytest.raises(errors.BadRequest, match="deadline_s"):
        client.read(url, deadline_s=deadline_s)


def test_every_call_ends_at_its_deadline(client: Client, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/slow", b"x" * 100)
    gate = threading.Event()
    client.info(url)
    http_origin.fail("/slow", Fault(gate=gate, methods=("GET", "HEAD")))
    fresh = http_origin.put("/slower", b"x")
    http_origin.fail("/slower", Fault(gate=gate, methods=("GET", "HEAD")))
    for call in (
        lambda: client.read(url, deadline_s=0.2),
        lambda: client.view(url, deadline_s=0.2),
        lambda: client.read_many([url, url], deadline_s=0.2),
        lambda: client.read_into(url, bytearray(5), deadline_s=0.2),
        lambda: client.info(fresh, deadline_s=0.2),
        lambda: client.read(fresh, deadline_s=0.2),
    ):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            call()
        assert 0.15 < time.monotonic() - started < 2.5
    gate.set()
    assert client.read(url) == b"x" * 100, "the fill went on"


# Event loops.


def test_async_twins(client: Client, make_object: MakeObject) -> None:
    url, data = make_object(2 * BLOCK)

    async def use() -> None:
        assert await client.aread(url, 5, 10) == data[5:15]
        assert await client.aread(url, 5, 10) == data[5:15]
        buffer = bytearray(100)
        assert await client.aread_into(url, buffer, 7) == 100 and buffer == data[7:107]
        assert await client.aread_many([url, (url, 1, 1)]) == [data, data[1:2]]
        with await client.aview(url, 0, BLOCK) as view:
            assert view.memory == data[:BLOCK]
        assert (await client.ainfo(url)).size == len(data)
        assert [info.url for info in await client.alist(url.rpartition("/")[0])] == [url]
        with await client.aopen(url) as opened:
            assert opened.read() == data
        many = await asyncio.gather(*(client.aread(url, start, 1000) for start in range(0, len(data), 1000)))
        assert b"".join(many) == data
        with pytest.raises(errors.NotFound):
            await client.aread(url + "-missing")

    asyncio.run(use())


# Endings.


def test_closing(client: Client, node: InProcessNode, make_object: MakeObject) -> None:
    url, _ = make_object(BLOCK)
    client.read(url)
    client.close()
    client.close()
    waiting.until(lambda: not node.node.state.leases.clients, "its connections ended")
    for call in (client.read, client.view, client.list, client.evict, client.prefetch):
        with pytest.raises(errors.Closed):
            call(url)
    with pytest.raises(errors.Closed):
        client.info(url + "-unknown")
    assert client.terms() is None


def test_a_client_that_was_never_used_opens_nothing(node: InProcessNode) -> None:
    with shoal.connect(node.memory):
        pass
    assert not node.node.state.leases.clients


def test_numbers(client: Client, node: InProcessNode, make_object: MakeObject) -> None:
    url, data = make_object(4 * BLOCK)
    client.read(url)
    stats = client.stats()
    assert (stats.reads, stats.bytes, stats.hits["origin"], stats.fallbacks) == (1, len(data), 4, 0)
    client.read(url)
    assert client.stats().hits["shared memory"] + client.stats().hits["tcp"] == 4
    numbers = client.node_stats()
    assert numbers["node"] == "node-1" and sum(numbers["fills"]["file"].values()) == 4
    assert client.terms().block_size_bytes == BLOCK
