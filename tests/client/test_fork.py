"""Clients in child processes: forked ones connect anew and leave the parent's leases alone, spawned ones too."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

import shoal
from shoal import errors
from shoal.client import Client
from shoal_transport.memory import MemoryListener
from tests.support import waiting
from tests.support.objects import MakeObject
from tests.support.running_node import MakeProcess, NodeProcess

BLOCK = 64 << 10


@pytest.fixture
def node(node_process: MakeProcess) -> NodeProcess:
    return node_process({"dram": {"budget_bytes": "4MiB"}})


def run(script: str, *arguments: str) -> str:
    """In a process of its own: pytest's has threads, and forking it would be another test."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rest(node: NodeProcess) -> None:
    """Nobody is connected but the one who asks."""
    waiting.until(lambda: node.status()["leases"] == 0 and node.status()["clients"] == 1, "all leases ended")


FORKED = """
import os, sys, shoal
address, url, flood = sys.argv[1:]
client = shoal.connect(address)
data = open(url.removeprefix("file://"), "rb").read()
view = client.view(url, 0, 65536)
identity = client._session.attachment.identity
child = os.fork()
if not child:
    code = 1
    try:
        assert client._session.attachment is None and not client._grants.by_key
        assert client.read(url) == data
        assert client._session.attachment.identity != identity
        with client.view(url, 65536, 10) as second:
            assert second.memory == data[65536:65546]
        client.close()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
# The child is gone, its connections with it; ours stand, and so does the lease under our view.
assert client._session.attachment.identity == identity
assert client.node_stats()["leases"] >= 1
with shoal.connect(address) as other:
    for _ in range(2):
        assert len(other.read(flood)) == 8 << 20
assert view.memory == data[:65536]
assert client.read(url) == data
assert client.stats().fallbacks == 0
print("good")
"""


def test_a_forked_child_has_a_client_of_its_own(node: NodeProcess, make_object: MakeObject) -> None:
    url, _ = make_object(2 * BLOCK)
    flood, _ = make_object(8 << 20, "flood")
    assert run(FORKED, node.address, url, flood) == "good\n"
    rest(node)


INHERITED = """
import os, sys, shoal
address, url = sys.argv[1:]
client = shoal.connect(address)
view = client.view(url)
sockets = lambda: {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(
    f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")}
mine = sockets()
assert len(mine) == 2, mine
child = os.fork()
if not child:
    os._exit(0 if not mine & sockets() else 1)
assert os.waitpid(child, 0)[1] == 0, "the child kept an inherited socket open"
os.write(1, b"good\\n")
"""


def test_inherited_sockets_are_closed_in_the_child(node: NodeProcess, make_object: MakeObject) -> None:
    """Else the node would not see the parent's end while the child lives."""
    url, _ = make_object(BLOCK)
    assert run(INHERITED, node.address, url) == "good\n"
    rest(node)


GRANDCHILDREN = """
import os, sys, shoal
address, url = sys.argv[1:]
client = shoal.connect(address)
data = client.read(url)
def descend(depth):
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert client.read(url) == data
        return status == 0
    code = 1
    try:
        assert client.read(url, 10, 100) == data[10:110]
        code = 0 if depth == 0 or descend(depth - 1) else 2
    finally:
        os._exit(code)
assert descend(3)
print("good")
"""


def test_children_of_children(node: NodeProcess, make_object: MakeObject) -> None:
    url, _ = make_object(2 * BLOCK)
    assert run(GRANDCHILDREN, node.tcp_address, url) == "good\n"
    rest(node)


def reading(client: Client, url: str) -> tuple[int, bytes, int]:
    """Top level: spawned processes import it."""
    data = client.read(url)
    return os.getpid(), data, client.stats().fallbacks


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_a_client_is_sent_to_spawned_processes(node: NodeProcess, make_object: MakeObject, door: str) -> None:
    url, data = make_object(2 * BLOCK)
    with shoal.connect(node.address if door == "unix" else node.tcp_address) as client:
        client.read(url)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pid, read, fallbacks = pool.submit(reading, client, url).result(30)
        assert pid != os.getpid() and read == data and fallbacks == 0
        assert client.read(url) == data
    rest(node)


def test_a_copy_through_pickle_is_another_client(node: NodeProcess, make_object: MakeObject) -> None:
    url, data = make_object(BLOCK)
    with shoal.connect(node.address, deadline_s=7, datasets={"d": "file:///x"}) as client:
        assert client.read(url) == data
        copy = pickle.loads(pickle.dumps(client))
        assert copy.read(url) == data and copy.stats().hits["shared memory"] == 1
        assert (copy.address, copy._deadline_s, copy._datasets) == (client.address, 7, {"d": "file:///x"})
        copy.close()
        assert client.read(url) == data


def test_a_client_of_this_process_alone_says_so() -> None:
    with shoal.connect(MemoryListener()) as client, pytest.raises(errors.BadRequest, match="another process"):
        pickle.dumps(client)
