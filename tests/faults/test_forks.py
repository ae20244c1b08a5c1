"""Forked children: a client of their own, in the middle of their parent's reads, and without a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal_core import limits
from tests.support import waiting
from tests.support.http_origin import HttpOrigin
from tests.support.running_node import MakeProcess, NodeProcess

BLOCK = 64 * limits.KIB


@pytest.fixture
def node(node_process: MakeProcess) -> NodeProcess:
    return node_process()


FORKING = """
import os, sys, threading, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import shoal
client = shoal.connect(sys.argv[1], deadline_s=20)
data = open(sys.argv[2], "rb").read()
url = "file://" + sys.argv[2]
stop = threading.Event()

def read_on(number):
    position = number * 1000
    while not stop.is_set():
        assert client.read(url, position, 70_000) == data[position : position + 70_000]
        position = (position + 77_777) % len(data)
        client.evict(url) if number == 0 and position < 70_000 else client.info(url)

threads = [threading.Thread(target=read_on, args=(number,), daemon=True) for number in range(3)]
for thread in threads:
    thread.start()
children, views = [], []
for number in range(12):
    view = client.view(url, number * 65536, 1000)
    views.append(view)  # the lease is this process's: a child may look for as long as it is kept here
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for position in range(0, len(data), 100_000):
                assert client.read(url, position, 150_000) == data[position : position + 150_000]
            assert client.read_many([(url, 5, 50), (url, 200_000, 7)]) == [data[5:55], data[200_000:200_007]]
            assert view.memory == data[number * 65536 : number * 65536 + 1000]
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    children.append(pid)
codes = [os.waitpid(child, 0)[1] for child in children]
del view
views.clear()
stop.set()
for thread in threads:
    thread.join(20)
assert not any(thread.is_alive() for thread in threads)
assert codes == [0] * 12, codes
assert client.read(url) == data
print("good", client.stats().hits["direct"])
"""


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_forks_in_the_middle_of_reads(node: NodeProcess, tmp_path: Path, door: str) -> None:
    """Children have a client of their own; the parent's goes on."""
    (tmp_path / "data").write_bytes(os.urandom(3 * limits.MIB))
    address = node.address if door == "unix" else node.tcp_address
    done = subprocess.run(
        [sys.executable, "-c", FORKING, address, str(tmp_path / "data")],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.stdout == "good 0\n", done.stderr[-3000:]
    waiting.until(lambda: node.status()["clients"] == 1, "all of them are gone but the one that asks")
    assert node.status()["leases"] == 0


DYING_PARENT = """
import os, sys, shoal
client = shoal.connect(sys.argv[1])
view = client.view(sys.argv[2])
if os.fork():
    print("forked", flush=True)
    sys.stdin.readline()
    os._exit(0)
sys.stdin.close()
assert client.read(sys.argv[2])
print(os.getpid(), flush=True)
import signal
signal.pause()
"""


def test_a_child_does_not_keep_its_dead_parents_leases(node: NodeProcess, http_origin: HttpOrigin) -> None:
    url = http_origin.put("/data", os.urandom(BLOCK))
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DYING_PARENT, node.address, url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    with process.stdin, process.stdout:
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        child = int((lines - {"forked"}).pop())
        try:
            assert node.status()["leases"] == 2, "one each, of the same block"
            process.stdin.write("end\n")
            process.stdin.flush()
            process.wait(10)
            waiting.until(lambda: node.status()["leases"] == 1, "the parent's ended with the parent")
        finally:
            os.kill(child, signal.SIGKILL)
    waiting.until(lambda: node.status()["leases"] == 0, "the child's ended with the child")


WITHOUT_A_NODE = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
import shoal
client = shoal.connect("unix:/nowhere/node.sock", deadline_s=10)
url, other, data = sys.argv[1], sys.argv[2], open(sys.argv[3], "rb").read()
assert client.read(url) == data
children = []
for number in range(3):
    if not (pid := os.fork()):
        code = 1
        try:
            assert client.read(url, 5, 100) == data[5:105]
            assert client.read_many([(url, 1, 2), (other, 0, 7)]) == [data[1:3], data[:7]]
            started = time.monotonic()
            try:
                client.read(url + "-missing")
            except FileNotFoundError:
                code = 0
            if not os.fork():
                os._exit(0 if client.read(other) == data else 3)
            code = code or os.waitstatus_to_exitcode(os.wait()[1])
        finally:
            os._exit(code)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
assert codes == [0, 0, 0], codes
assert client.read(other) == data
print("good")
"""


def test_forked_children_read_from_the_origin_as_their_parent_did(http_origin: HttpOrigin, tmp_path: Path) -> None:
    """obstore's threads do not survive a fork; a call of it in a child would wait until the deadline."""
    data = os.urandom(3 * BLOCK)
    (tmp_path / "data").write_bytes(data)
    urls = [http_origin.put("/data", data), f"file://{tmp_path}/data"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_NODE, *urls, str(tmp_path / "data")],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.stdout == "good\n", done.stderr[-3000:]
