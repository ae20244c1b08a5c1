"""Sizes and names at their limits: caches of hardly a block, data sets beyond the cache, tiny objects, odd names."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal import errors
from shoal_core import config, limits
from tests.faults.conftest import Connect
from tests.support.http_origin import HttpOrigin
from tests.support.running_node import InProcessNode, MakeInProcess
from tests.support.s3_server import S3Server

BLOCK = 64 * limits.KIB


def make(directory: Path, name: str, size: int) -> tuple[str, bytes]:
    data = os.urandom(size)
    (directory / name).write_bytes(data)
    return f"file://{directory / name}", data


def fills(stats: dict[str, Any]) -> int:
    return sum(counts.get("ok", 0) for counts in stats["fills"].values())


# Small caches


@pytest.mark.parametrize("block", [4 * limits.KIB, 4 * limits.MIB], ids=["4 KiB", "4 MiB"])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_cache_of_hardly_a_block(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path, block: int, factor: int
) -> None:
    """The smallest that the configuration lets pass, and little more: every read right, in time, and some cached."""
    least = factor * config.slab_bytes(0, block) + config.INDEX_BYTES_MIN
    node = in_process_node({"dram": {"budget_bytes": least}, "fill": {"block_size_bytes": block}})
    client = connect(node.address)
    url, data = make(tmp_path, "large", 10 * block + 100)
    small_url, small = make(tmp_path, "small", block // 2)
    started = time.monotonic()
    for _ in range(2):
        assert client.read(url) == data
        assert client.read_many([(url, start, block // 3) for start in range(0, len(data), block // 2)]) == [
            data[start : start + block // 3] for start in range(0, len(data), block // 2)
        ]
        with client.view(url) as view:
            assert b"".join(view.parts) == data
    assert time.monotonic() - started < 10
    for _ in range(2):
        assert client.read(small_url) == small
    stats = client.node_stats()
    hits = client.stats().hits
    assert stats["tiers"]["dram"]["blocks"] >= 1
    assert stats["fallbacks"]["bypass"] == hits["direct"], "what could not be held is visible on both sides"
    used = stats["tiers"]["dram"]["used_bytes"] + stats["tiers"]["dram"]["index_bytes"]
    assert used <= least and sum(segment["bytes"] for segment in stats["segments"]) <= least


def test_one_byte_below_the_smallest_cache() -> None:
    least = config.slab_bytes(0, limits.MIB) + config.INDEX_BYTES_MIN
    told = {
        "node_name": "n",
        "doors": {"tcp": "127.0.0.1:0"},
        "fill": {"block_size_bytes": limits.MIB},
        "dram": {"budget_bytes": least - 1},
    }
    with pytest.raises(errors.ConfigError, match=rf"dram\.budget_bytes.*{limits.MIB}.*{least}"):
        config.parse(told)


# Data sets beyond the cache


@pytest.mark.parametrize("eviction", ["epoch", "s3fifo"])
@pytest.mark.parametrize("disk", [False, True], ids=["dram", "dram and disk"])
def test_a_dataset_larger_than_the_cache(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path, eviction: str, disk: bool
) -> None:
    """Three epochs in shuffled order: all bytes right, and 'epoch' serves what fits of it from the cache each time."""
    (tmp_path / "data").mkdir()
    items = {f"shoal://big/{number}": make(tmp_path / "data", str(number), BLOCK)[1] for number in range(400)}
    overrides: dict[str, Any] = {
        "dram": {"budget_bytes": 8 * limits.MIB},
        "datasets": {"big": {"url": f"file://{tmp_path}/data", "eviction": eviction}},
    }
    if disk:
        overrides["nvme"] = [{"directory": str(tmp_path / "cache"), "budget_bytes": 16 * limits.MIB}]
    node = in_process_node(overrides)
    client = connect(node.address)
    chance = random.Random(2)
    client.list("shoal://big/")
    shares: list[float] = []
    for _ in range(4):
        before = fills(client.node_stats())
        order = list(items)
        chance.shuffle(order)
        # Batches small beside the twentieth of the cache that newcomers pass through.
        for start in range(0, len(order), 4):
            batch = order[start : start + 4]
            assert client.read_many(batch) == [items[url] for url in batch]
        shares.append(1 - (fills(client.node_stats()) - before) / len(items))
    stats = client.node_stats()
    assert client.stats().hits["direct"] == 0
    room = max(tier["used_bytes"] for tier in stats["tiers"].values())
    assert room <= (16 if disk else 8) * limits.MIB
    assert shares[0] == 0
    if eviction == "epoch":
        # The disk, written behind, may be full only after the second epoch.
        assert min(shares[2 if disk else 1 :]) >= 0.9 * room / (len(items) * BLOCK), shares
        assert room > (13 if disk else 6) * limits.MIB, "and the cache is full"


# Many tiny objects


def test_ten_thousand_tiny_objects(in_process_node: MakeInProcess, connect: Connect, tmp_path: Path) -> None:
    chance = random.Random(4)
    contents: dict[str, bytes] = {}
    for number in range(100):
        (tmp_path / f"{number}").mkdir()
        for name in range(100):
            data = chance.randbytes(chance.randrange(300))
            (tmp_path / f"{number}" / f"{name}").write_bytes(data)
            contents[f"file://{tmp_path}/{number}/{name}"] = data
    node = in_process_node()
    client = connect(node.address)
    assert {info.url for info in client.list(f"file://{tmp_path}/")} == set(contents)
    urls = list(contents)
    assert client.read_many(urls) == list(contents.values())
    stats = client.node_stats()
    with_bytes = sum(map(bool, contents.values()))
    assert fills(stats) == with_bytes == stats["tiers"]["dram"]["blocks"]
    for reader in (client, connect(node.address), connect(node.tcp_address)):
        reader.list(f"file://{tmp_path}/")
        chance.shuffle(urls)
        assert reader.read_many(urls) == [contents[url] for url in urls]
        hits = reader.stats().hits
        assert sum(hits.values()) == (2 if reader is client else 1) * with_bytes
        # What was named ahead and had come before it was asked for counts as memory.
        assert (with_bytes / 2 < hits["origin"] <= with_bytes) if reader is client else not hits["origin"]
        assert hits["direct"] == 0
    stats = client.node_stats()
    assert fills(stats) == with_bytes, "everything was warm"
    # 128 bytes for each slot of the slabs that are cut, and what is really there is not more.
    index = stats["tiers"]["dram"]["index_bytes"]
    assert 128 * with_bytes <= index <= 128 * (with_bytes + 3 * node.config.slab_bytes // limits.SLOT_BYTES_MIN)
    assert stats["index_memory_bytes"] <= index + 2 * limits.MIB
    assert stats["tiers"]["dram"]["used_bytes"] <= sum(map(len, contents.values())) + 256 * with_bytes


# Empty objects


def check_empty(client: shoal.Client, url: str, other: str) -> None:
    assert client.info(url).size == 0
    assert client.read(url) == client.read(url, 0, 10) == client.read(url, 5) == b""
    assert client.read_into(url, bytearray(3)) == 0
    assert client.read_many([url, (other, 0, 4), (url, 0, None)]) == [b"", b"data", b""]
    with client.view(url) as view:
        assert len(view) == 0 and view.parts == [] and bytes(view.memory) == b""
    with client.open(url) as file:
        assert file.read() == b"" and file.seek(0, 2) == 0
    client.prefetch(url)
    assert client.inspect([url])[0].block_count == 0 and client.evict(url) == 0
    assert client.stats().hits["direct"] == 0


def test_empty_files_and_pages(
    in_process_node: MakeInProcess, connect: Connect, tmp_path: Path, http_origin: HttpOrigin
) -> None:
    client = connect(in_process_node().address)
    (tmp_path / "data").write_bytes(b"data")
    (tmp_path / "empty").touch()
    check_empty(client, f"file://{tmp_path}/empty", f"file://{tmp_path}/data")
    check_empty(client, http_origin.put("/empty", b""), http_origin.put("/data", b"data"))
    assert http_origin.count("/empty") == 0, "nothing is read of nothing"


def test_empty_s3_objects(in_process_node: MakeInProcess, connect: Connect, s3_server: S3Server) -> None:
    client = connect(in_process_node({"origins": {"s3://hollow": s3_server.options}}).address)
    check_empty(client, s3_server.put("hollow", "empty", b""), s3_server.put("hollow", "data", b"data"))
    listed = {info.url: info.size for info in client.list("s3://hollow/")}
    assert listed == {"s3://hollow/empty": 0, "s3://hollow/data": 4}


# Names

NAMES = [
    "with space", "percent%20sign", "hash#mark", "question?mark=1&more", "plus+sign", "semi;colon,comma",
    "quote'double\"", "brackets[1]{2}(3)", "back\\slash", "tilde~star*dollar$", "caf\u00e9 \u96ea \U0001f40b",
    "cafe\u0301", "colon:at@", "-dash", ".hidden", "%", "%%%", "%zz", "a" * 255, "\u96ea" * 85, "shoal:__x", "..two",
]  # fmt: skip


def ids(name: str) -> str:
    return ascii(name)[:20]


@pytest.fixture
def any_node(in_process_node: MakeInProcess, s3_server: S3Server) -> InProcessNode:
    return in_process_node({"origins": {"s3://names": s3_server.options}})


def check_name(client: shoal.Client, url: str, data: bytes, directory: str) -> None:
    assert client.read(url) == data
    assert client.read(url, 3, 4) == data[3:7]
    assert client.info(url).url == url
    assert url in {info.url for info in client.list(directory)}, "and it is listed under the name it has"
    assert client.read_many([info for info in client.list(directory) if info.url == url]) == [data]
    assert client.evict(url) == 1
    with pytest.raises(errors.NotFound) as caught:
        client.read(url + "x")
    assert url.rpartition("/")[2][:40] in str(caught.value)


@pytest.mark.parametrize("name", NAMES, ids=ids)
def test_file_names(any_node: InProcessNode, connect: Connect, tmp_path: Path, name: str) -> None:
    data = os.urandom(1000)
    (tmp_path / name).write_bytes(data)
    client = connect(any_node.address)
    if len(os.fsencode(name)) == 255:
        with pytest.raises(errors.NotFound):
            client.read(f"file://{tmp_path}/{name}x")
        assert client.read(f"file://{tmp_path}/{name}") == data
    else:
        check_name(client, f"file://{tmp_path}/{name}", data, f"file://{tmp_path}/")


@pytest.mark.parametrize("name", [name for name in NAMES if len(os.fsencode(name)) < 200], ids=ids)
def test_s3_keys(any_node: InProcessNode, connect: Connect, s3_server: S3Server, name: str) -> None:
    data = os.urandom(1000)
    s3_server.make_bucket("names")
    # Past obstore, which would not write all of these: the server keeps objects as files.
    url = s3_server.put("names", f"dir/{name}", data)
    check_name(connect(any_node.address), url, data, "s3://names/dir/")


@pytest.mark.parametrize("name", [name for name in NAMES if "\\" not in name], ids=ids)
def test_web_paths(any_node: InProcessNode, connect: Connect, http_origin: HttpOrigin, name: str) -> None:
    data = os.urandom(1000)
    url = http_origin.put(f"/{name}", data)
    client = connect(any_node.address)
    assert client.read(url) == data and client.info(url).url == url
    with pytest.raises(errors.NotFound):
        client.read(http_origin.url(f"/{name}x"))


def test_the_longest_s3_key(any_node: InProcessNode, connect: Connect, s3_server: S3Server) -> None:
    data = os.urandom(3 * BLOCK)
    key = "/".join(["k" * 203] * 5)
    key += "x" * (1024 - len(key))
    assert len(key) == 1024
    url = s3_server.put("names", key, data)
    client = connect(any_node.address)
    assert client.read(url) == data
    assert url in {info.url for info in client.list("s3://names/")}
    with pytest.raises(errors.ShoalError, match="s3://names/kkk"):
        client.read(url + "x")


def test_a_url_beyond_all_limits(any_node: InProcessNode, connect: Connect) -> None:
    client = connect(any_node.address)
    with pytest.raises(errors.BadRequest, match=str(limits.URL_BYTES_MAX)) as caught:
        client.read("file:///" + "x" * limits.URL_BYTES_MAX)
    assert len(str(caught.value)) < 300
    long_path = "file:///" + "/".join(["d" * 100] * 60)
    with pytest.raises(errors.NotFound):
        client.read(long_path)


@pytest.mark.parametrize("name", ["nul\0byte", "new\nline", "tab\t", "\x7f", "half \ud800 pair"], ids=ids)
def test_names_that_no_origin_has(any_node: InProcessNode, connect: Connect, tmp_path: Path, name: str) -> None:
    client = connect(any_node.address)
    for url in (f"file://{tmp_path}/{name}", f"s3://names/{name}"):
        with pytest.raises((errors.ShoalError, ValueError)) as caught:
            client.read(url)
        assert "\n" not in str(caught.value), "one line, whatever the name"
    (tmp_path / "data").write_bytes(b"data")
    assert client.read(f"file://{tmp_path}/data") == b"data"
