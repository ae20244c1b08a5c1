"""A pod, a real cache node and the driver: what is read through a volume, by whom, and for how long.

The pod is a process with the volume at /run/shoal in a mount namespace of its own, and with no rights at all. The
origin is a directory that only root may enter, so that what the pod reads it reads through the node.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.csi.machine import Driver, Machine
from tests.csi.tenants import KEY, Account, Team, Tenants
from tests.support import waiting
from tests.support.running_node import MakeProcess, NodeProcess

CONTENT = b"bytes of one image"

_POD = """
import encodings.ascii, encodings.idna, os, sys  # without rights no codec is found any more
import shoal
os.setgroups([]), os.setgid(65534), os.setuid(65534)
client = shoal.connect(deadline_s=10)
for url in map(str.strip, sys.stdin):
    try:
        print("read", client.read(url).decode(), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


class PodProcess:
    """Reads what it is told to, one URL a line."""

    def __init__(self, machine: Machine, target: Path) -> None:
        inside = f'mount -t tmpfs none /run && mkdir /run/shoal && mount --bind "{target}" /run/shoal && exec "$@"'
        argv = ["nsenter", f"--mount={machine.namespace}", "unshare", "--mount", "sh", "-ec", inside, "pod"]
        self._process = subprocess.Popen(
            [*argv, sys.executable, "-c", _POD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, url: str) -> str:
        """What came, after the word "read"; or the error."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{url}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(15)
        self._process.stdout.close()


@pytest.fixture
def start_pod(machine: Machine) -> Iterator[Callable[[Path], PodProcess]]:
    pods: list[PodProcess] = []

    def start(target: Path) -> PodProcess:
        pods.append(PodProcess(machine, target))
        return pods[-1]

    yield start
    for pod in pods:
        pod.close()


@pytest.fixture
def team(tenants: Tenants) -> Team:
    return tenants.team()


@pytest.fixture
def account(team: Team) -> Account:
    return team.account()


@pytest.fixture
def pool(tenants: Tenants, team: Team) -> str:
    pool = tenants.pool()
    team.dataset("images", pool)
    return pool


@pytest.fixture
def cache_node(node_process: MakeProcess, machine: Machine, team: Team, pool: str, tmp_path: Path) -> NodeProcess:
    """The pool's node on the machine."""
    origin = tmp_path / "origin"
    origin.mkdir(mode=0o700)
    (origin / "one").write_bytes(CONTENT)
    key = tmp_path / "key"
    key.write_bytes(KEY)
    return node_process(
        {
            "datasets": {f"{team.namespace}.images": {"url": f"file://{origin}"}},
            "access": {
                "key_file": str(key),
                "pool": pool,
                "volumes_directory": str(machine.root / pool / "volumes"),
            },
        }
    )


def _show(tenants: Tenants, pool: str, cache_node: NodeProcess, name: str) -> None:
    addresses = [cache_node.tcp_address]
    tenants.view(pool, {"id": name, "addresses": addresses, "capacity_bytes": 1, "status": "ready"})


def test_a_pod_reads_through_its_own_socket_while_it_may(
    driver: Driver,
    machine: Machine,
    tenants: Tenants,
    team: Team,
    account: Account,
    pool: str,
    cache_node: NodeProcess,
    start_pod: Callable[[Path], PodProcess],
) -> None:
    team.allow("images", account)
    _show(tenants, pool, cache_node, "node-1")
    pod = account.pod()
    target = machine.target(pod.uid)
    context = pod.context("images")
    driver.publish(context, target)
    socket = machine.seen(target) / "node.sock"
    waiting.until(socket.exists, "the node's socket in the pod")
    inode = socket.stat().st_ino

    process = start_pod(target)
    for name in "images", f"{team.namespace}.images":
        assert process.read(f"shoal://{name}/one") == f"read {CONTENT.decode()}"
    assert process.read("shoal://others/one").startswith("Forbidden")
    driver.publish(context, target)
    assert socket.stat().st_ino == inode, "the same identity again is the same socket"

    team.forbid("images", account)
    assert driver.refusal(context, target)[0] == "PERMISSION_DENIED"
    waiting.until(lambda: process.read("shoal://images/one").startswith("Forbidden"), "the end of the permission")
    team.allow("images", account)
    driver.publish(context, target)
    waiting.until(lambda: process.read("shoal://images/one").startswith("read "), "the permission's return")

    cache_node.kill()
    cache_node.start()
    waiting.until(lambda: process.read("shoal://images/one").startswith("read "), "the node's return")
    driver.unpublish(pod.volume_id, target)
    assert list(machine.root.glob("*/volumes/*")) == [] and machine.mounts() == {}


def test_a_pod_on_a_machine_without_a_node_reads_over_tcp_with_its_token(
    driver: Driver,
    machine: Machine,
    tenants: Tenants,
    team: Team,
    account: Account,
    pool: str,
    cache_node: NodeProcess,
    start_pod: Callable[[Path], PodProcess],
) -> None:
    team.allow("images", account)
    _show(tenants, pool, cache_node, "node-9")
    pod = account.pod()
    target = machine.target(pod.uid)
    context = pod.context("images")
    driver.publish(context, target)
    process = start_pod(target)
    assert process.read("shoal://images/one") == f"read {CONTENT.decode()}"
    team.forbid("images", account)
    assert driver.refusal(context, target)[0] == "PERMISSION_DENIED"
    again = start_pod(target)
    assert again.read("shoal://images/one").startswith("Forbidden")
