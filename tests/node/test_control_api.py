"""The control door over real sockets, on the event loop that the node uses: probes, metrics, drain, and a clean end."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

import shoal
from shoal_core.errors import ConfigError
from shoal_node import control_api, metrics
from tests.support import waiting
from tests.support.running_node import MakeProcess, NodeProcess


class DrainingNode:
    """The smallest thing that a control door can stand in front of."""

    def __init__(self) -> None:
        self.draining = False
        self.counters = metrics.Counters()

    def status(self) -> dict[str, Any]:
        return {"node": "n1", "pid": 1, "spaces": {"größe": {"used_bytes": 1}}}

    def ready(self) -> tuple[bool, str]:
        return (False, "draining") if self.draining else (True, "")

    def check_operator(self, authorization: str) -> None:
        pass

    def start_drain(self) -> dict[str, Any]:
        self.draining = True
        return self.drain_progress()

    def cancel_drain(self) -> dict[str, Any]:
        self.draining = False
        return self.drain_progress()

    def drain_progress(self) -> dict[str, Any]:
        return {"draining": self.draining, "fills_in_flight": 2}

    def metrics_values(self) -> tuple[metrics.Counters, metrics.Gauges]:
        return self.counters, metrics.Gauges({}, {})


Ask = Callable[..., Awaitable[tuple[int, str, bytes]]]


def with_door(address: str, scenario: Callable[[DrainingNode, Ask, str], Awaitable[None]]) -> None:
    """Serve on `address`, run the scenario against it, cancel, and wait for the end."""

    async def main() -> None:
        node = DrainingNode()
        listening: asyncio.Queue[str] = asyncio.Queue()
        door = asyncio.create_task(
            control_api.serve(control_api.make_app(node), address, listening=listening.put_nowait)
        )
        bound = await listening.get()

        async def ask(method: str, path: str) -> tuple[int, str, bytes]:
            return await asyncio.to_thread(request, bound, method, path)

        try:
            await scenario(node, ask, bound)
        finally:
            door.cancel()
            with pytest.raises(asyncio.CancelledError):
                await door
            assert door.cancelled()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def request(address: str, method: str, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("node" if address.startswith("unix:") else address, timeout=10)
    try:
        if address.startswith("unix:"):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(address.removeprefix("unix:"))
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.headers.get("content-type", ""), reply.read()
    finally:
        connection.close()


@pytest.fixture(params=["127.0.0.1:0", "[::1]:0", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/control.sock" if request.param == "unix" else request.param


def test_endpoints_on_every_kind_of_address(address: str) -> None:
    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        assert not bound.endswith(":0")
        assert await ask("GET", "/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")
        assert await ask("GET", "/readyz") == (200, "text/plain; charset=utf-8", b"ok\n")
        status, kind, body = await ask("GET", "/status")
        assert (status, kind, json.loads(body)) == (200, "application/json", node.status())
        node.counters.origin_requests += 41
        status, kind, body = await ask("GET", "/metrics")
        assert status == 200 and kind.startswith("text/plain; version=")
        assert b"shoal_origin_requests_total 41.0\n" in body
        assert (await ask("GET", "/nothing"))[0] == 404

    with_door(address, scenario)


def test_drain_makes_the_node_unready_and_shows_progress() -> None:
    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        assert json.loads((await ask("GET", "/drain"))[2])["draining"] is False
        assert not node.draining, "asking for progress must not start it"
        status, _, body = await ask("POST", "/drain")
        assert status == 202 and json.loads(body) == {"draining": True, "fills_in_flight": 2}
        assert json.loads((await ask("GET", "/drain"))[2])["draining"] is True
        assert (await ask("GET", "/readyz"))[::2] == (503, b"draining\n")
        assert (await ask("GET", "/healthz"))[0] == 200, "a draining node must not be restarted"
        assert (await ask("DELETE", "/drain"))[0] == 202 and not node.draining, "it may stay after all"

    with_door("127.0.0.1:0", scenario)


def test_the_end_closes_the_port_and_removes_the_socket(address: str) -> None:
    seen: list[str] = []

    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        await ask("GET", "/healthz")
        seen.append(bound)

    with_door(address, scenario)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        request(seen[0], "GET", "/healthz")
    if address.startswith("unix:"):
        assert not Path(address.removeprefix("unix:")).exists()


def test_an_idle_keep_alive_connection_does_not_hold_up_the_end(tmp_path: Path) -> None:
    held = socket.socket(socket.AF_UNIX)

    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        await asyncio.to_thread(held.connect, bound.removeprefix("unix:"))
        await ask("GET", "/healthz")

    with held:
        with_door(f"unix:{tmp_path}/control.sock", scenario)


def test_signals_stay_with_the_node() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        await ask("GET", "/healthz")
        during = signal.getsignal(signal.SIGTERM)
        assert during is before[signal.SIGTERM]

    with_door("127.0.0.1:0", scenario)


def test_the_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        mode = (await asyncio.to_thread(path.stat)).st_mode
        assert mode & 0o777 == 0o600

    with_door(f"unix:{path}", scenario)


def test_the_socket_of_a_dead_node_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(f"{tmp_path}/control.sock")
    dead.close()

    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        assert (await ask("GET", "/healthz"))[0] == 200

    with_door(f"unix:{tmp_path}/control.sock", scenario)


def test_the_socket_of_a_living_node_is_not(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/control.sock"

    async def scenario(node: DrainingNode, ask: Ask, bound: str) -> None:
        with pytest.raises(ConfigError, match="in use"):
            await control_api.serve(control_api.make_app(node), address)
        assert (await ask("GET", "/healthz"))[0] == 200

    with_door(address, scenario)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8080",
        "localhost",
        "localhost:http",
        "127.0.0.1:70000",
        "unix:/nowhere/at/all",
        "unix:/dev/null",
        "192.0.2.1:9",
    ],
)
def test_an_address_that_cannot_be_used_is_a_config_error_that_names_it(address: str) -> None:
    app = control_api.make_app(DrainingNode())
    with pytest.raises(ConfigError, match=r"doors\.control") as caught:
        asyncio.run(control_api.serve(app, address))
    assert address in str(caught.value)


def control_address(node: NodeProcess) -> str:
    found = (address for address in node.status()["addresses"] if address.startswith("control:"))
    return next(found, "").removeprefix("control:")


def test_a_real_node_counts_what_was_read_and_drains(node_process: MakeProcess, tmp_path: Path) -> None:
    node = node_process({"doors": {"control": "127.0.0.1:0"}})
    waiting.until(lambda: control_address(node), "the control door is open")  # it opens after the readers' doors
    door = control_address(node)
    (tmp_path / "object").write_bytes(b"x" * 100_000)
    url = f"file://{tmp_path}/object"
    with shoal.connect(node.tcp_address) as client:
        client.read(url)
        client.read(url)
        assert request(door, "GET", "/readyz")[::2] == (200, b"ok\n")
        text = request(door, "GET", "/metrics")[2].decode()
        assert 'shoal_reads_total{door="tcp",source="origin"} 2.0\n' in text
        assert 'shoal_reads_total{door="tcp",source="dram"} 2.0\n' in text
        assert 'shoal_read_bytes_total{door="tcp",source="dram"} 100000.0\n' in text
        assert 'shoal_fills_total{origin="file",result="ok"} 2.0\n' in text
        assert "shoal_fill_bytes_total 100000.0\n" in text
        assert 'shoal_blocks{tier="dram"} 2.0\n' in text
        status = json.loads(request(door, "GET", "/status")[2])
        assert status["pid"] == node.pid and status["draining"] is False
        assert request(door, "POST", "/drain")[0] == 202
        assert request(door, "GET", "/readyz")[0] == 503
        # A draining node gives nothing away, and its readers are none the worse.
        assert client.read(url) == b"x" * 100_000
        assert client.stats().hits["direct"] == 2
        text = request(door, "GET", "/metrics")[2].decode()
        assert 'shoal_reads_total{door="tcp",source="dram"} 2.0\n' in text
    assert node.stop() == 0


def test_memory_of_the_imports() -> None:
    """The node may use 150 MiB beside its budget; what it only imports must leave most of that."""
    program = (
        "import uvloop, obstore, msgspec, xxhash, prometheus_client, shoal_node.control_api;"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) / 1024 < 75
