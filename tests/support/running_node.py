"""Real nodes for tests: as a child process, or on a loop in a thread of this process.

`node_process(overrides)` starts `python -m shoal_node` with a configuration of its own and returns when its Unix door
answers; `in_process_node(overrides)` runs the same assembly here, so that a test can look at the node's state and read
through the memory door. Both merge `overrides` into `DEFAULTS`, key by key, and end what they started with the test.
Sockets lie in a short directory of their own, because a socket's path may have only 107 bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from shoal_core import verbs
from shoal_core.config import NodeConfig, parse
from shoal_core.errors import ShoalError
from shoal_core.verbs import hello, stat
from shoal_node import assembly
from shoal_node.runtime import Node
from shoal_node.serve import Server
from shoal_transport import unix
from shoal_transport.memory import MemoryListener
from tests.support import waiting

DEFAULTS: dict[str, Any] = {
    "node_name": "node-1",
    "dram": {"budget_bytes": "48MiB", "huge_pages": "never"},
    "doors": {"tcp": "127.0.0.1:0"},
    "fill": {"block_size_bytes": "64KiB", "timeout_s": 10.0, "retries": 0},
}
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
SPOILT = b"\xdb"


def merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overrides` laid over it, tables within tables. None takes a field away."""
    result = dict(base)
    for name, value in overrides.items():
        known = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(known, Mapping):
            result[name] = merged(known, value)
        else:
            result[name] = value
    return result


def configuration(directory: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a node below `directory` is told."""
    return merged(merged(DEFAULTS, {"doors": {"unix": str(directory / "node.sock")}}), overrides)


def ask_status(path: str, seconds: float = 5.0) -> dict[str, Any]:
    """The `stat` verb's values from the node at a Unix socket; a ShoalError when it does not answer."""
    deadline = time.monotonic() + seconds
    channel = unix.connect(path, deadline)
    try:
        for kind, request in (
            (hello.KIND, hello.Request(os.urandom(16), hello.REQUESTS, "test")),
            (stat.KIND, stat.Request()),
        ):
            header, body = channel.call(kind, verbs.encode(request), deadline)
            reply = verbs.decode_reply(kind, header, body)
    finally:
        channel.close()
    return reply.values


class NodeProcess:
    """A node as a child process. `address` and `tcp_address` are what `shoal.connect` takes."""

    def __init__(self, directory: Path, config: Mapping[str, Any], environment: Mapping[str, str] | None) -> None:
        self.config = dict(config)
        self.config_file = directory / "node.json"
        self.config_file.write_text(json.dumps(self.config))
        self.socket_path = str(self.config["doors"]["unix"])
        self.address = f"unix:{self.socket_path}"
        self.tcp_address = ""
        self._environment = {**os.environ, **(environment or {})}
        self._log_file = directory / "node.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """What the node wrote to its output, over all starts."""
        return self._log_file.read_text(errors="replace")

    def start(self) -> None:
        """Also again, after `stop` or `kill`. Returns when the node answers; AssertionError with its log if not."""
        with self._log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shoal_node", "--config", str(self.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        addresses: list[str] = []

        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the node ended with {self.process.returncode}:\n{self.log[-4000:]}")
            with contextlib.suppress(ShoalError):
                addresses[:] = self.status()["addresses"]
            return bool(addresses)

        waiting.until(answers, f"the node at {self.address} answers", START_TIMEOUT_S)
        self.tcp_address = next((address for address in addresses if address.startswith("tcp:")), "")

    def status(self) -> dict[str, Any]:
        """The node's counters and gauges, over a connection of their own."""
        return ask_status(self.socket_path)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """End it in order; its exit status. A second time does nothing."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = STOP_TIMEOUT_S) -> int:
        """Its exit status, when it ends within that time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the node did not end within {seconds} s:\n{self.log[-4000:]}") from None


class InProcessNode:
    """A node on a loop in a thread of this process."""

    node: Node
    server: Server
    memory: MemoryListener
    loop: asyncio.AbstractEventLoop

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test-node", daemon=True)

    @property
    def address(self) -> str:
        """The Unix door's."""
        return f"unix:{self.config.doors.unix}"

    @property
    def tcp_address(self) -> str:
        return next(address for address in self.node.addresses if address.startswith("tcp:"))

    def start(self) -> None:
        """Returns when the node serves; raises what kept it from that."""
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise AssertionError("the node did not start in time")
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def stop(self) -> None:
        """End it in order; raises what went wrong meanwhile. A second time does nothing."""
        if self._thread.is_alive() and self._stop is not None:
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise AssertionError(f"the node did not end within {STOP_TIMEOUT_S} s")
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def check(self) -> None:
        """The state's own invariants, now."""
        with self.node.step() as state:
            state.check()

    def spoil_freed_slots(self) -> None:
        """From now on a slot is overwritten when it becomes free: who reads without a lease reads garbage."""
        slabs, node = self.node.state.dram.slabs, self.node
        free = slabs.free

        def spoil(slot: int) -> None:
            memory = node.slot_memory(slot, slabs.slot_bytes(slot))
            memory[:] = SPOILT * len(memory)
            free(slot)

        slabs.free = spoil

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._failure = error
        self._ready.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with assembly.running(self.config) as running:
            self.node, self.server, self.memory = running.node, running.server, running.memory
            self._ready.set()
            await self._stop.wait()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A new directory whose path leaves room for a socket's name."""
    directory = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


MakeProcess = Callable[..., NodeProcess]
MakeInProcess = Callable[..., InProcessNode]


@pytest.fixture
def node_process() -> Iterator[MakeProcess]:
    """node_process(overrides, environment=..., start=True) -> NodeProcess; any number per test, ended with it."""
    with contextlib.ExitStack() as stack:

        def make(
            overrides: Mapping[str, Any] | None = None,
            *,
            environment: Mapping[str, str] | None = None,
            start: bool = True,
        ) -> NodeProcess:
            directory = stack.enter_context(short_directory())
            process = NodeProcess(directory, configuration(directory, overrides or {}), environment)
            if start:
                stack.callback(process.kill)
                process.start()
            return process

        yield make


@pytest.fixture
def in_process_node() -> Iterator[MakeInProcess]:
    """in_process_node(overrides) -> InProcessNode; any number per test, checked and ended with it."""
    with contextlib.ExitStack() as stack:

        def make(overrides: Mapping[str, Any] | None = None) -> InProcessNode:
            directory = stack.enter_context(short_directory())
            node = InProcessNode(parse(configuration(directory, overrides or {})))
            node.start()
            stack.callback(node.stop)
            stack.callback(node.check)
            return node

        yield make
