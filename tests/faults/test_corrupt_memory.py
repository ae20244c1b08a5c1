"""Bytes that go bad in the node's memory: found by the reader, judged by the node, never served twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import shoal
from shoal_core import keys, limits
from shoal_core.verbs import complain, get
from tests.faults import raw_client
from tests.faults.conftest import Connect
from tests.support.running_node import InProcessNode, MakeInProcess

BLOCK = 64 * limits.KIB


@pytest.fixture
def node(in_process_node: MakeInProcess) -> InProcessNode:
    return in_process_node()


@pytest.fixture
def data() -> bytes:
    return os.urandom(4 * BLOCK + 100)


@pytest.fixture
def url(tmp_path: Path, data: bytes) -> str:
    (tmp_path / "data").write_bytes(data)
    return f"file://{tmp_path}/data"


def flip(node: InProcessNode, client: shoal.Client, url: str, block: int, position: int) -> None:
    """Invert a bit of a block in the node's memory."""
    with node.node.step() as state:
        entry = state.lookup(keys.block_key(client.info(url).fingerprint, block))
        node.node.entry_memory(entry)[position] ^= 4


@pytest.mark.parametrize(
    "read",
    [
        lambda client, url: client.read(url),
        lambda client, url: b"".join(client.read_many([(url, start, 700) for start in range(0, 4 * BLOCK + 100, 700)])),
        lambda client, url: b"".join(bytes(part) for part in client.view(url).parts),
    ],
    ids=["read", "read_many", "view"],
)
def test_a_bit_that_flipped_in_the_nodes_memory(
    node: InProcessNode, connect: Connect, url: str, data: bytes, read: Callable[[shoal.Client, str], bytes]
) -> None:
    """The reader over TCP sees it, the node finds it true, brings the block anew and never uses that memory again."""
    client = connect(node.tcp_address)
    assert client.read(url) == data
    flip(node, client, url, 1, 1234)
    flip(node, client, url, 4, 99)
    assert read(client, url) == data
    assert client.stats().corrupt_pages >= 2 and client.stats().hits["direct"] == 0
    stats = client.node_stats()
    assert stats["corrupt_pages"]["dram"] == 2 and stats["quarantined_bytes"] >= BLOCK
    assert stats["fills"]["file"]["ok"] == 7, "five blocks, and two of them again"
    before = client.stats().corrupt_pages
    assert connect(node.tcp_address).read(url) == client.read(url) == data
    assert client.stats().corrupt_pages == before


def test_a_complaint_without_reason(node: InProcessNode, connect: Connect, url: str, data: bytes) -> None:
    """A reader whose own memory is bad cannot empty the cache."""
    client = connect(node.address)
    assert client.read(url) == data
    with raw_client.reader(node.address) as (requests, _):
        for answer in requests.get(requests.resolve(url), range(5)):
            assert isinstance(answer, get.Grant)
            for generation in (answer.generation, answer.generation + 1):
                reply = requests.call(complain.KIND, complain.Request(answer.entry, generation))
                assert reply.quarantined is False
    stats = client.node_stats()
    assert stats["corrupt_pages"]["dram"] == 0 and stats["quarantined_bytes"] == 0
    assert client.inspect([url])[0].dram_bytes == len(data)
