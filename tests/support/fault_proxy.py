"""A TCP proxy that misbehaves on request: between readers and a node, between nodes, or between a node and its origin.

`with fault_proxy(address, target) as proxy` listens at one address, on the host of `namespace` if one is given, and
passes each connection on to the other. `proxy.set(Faults(...))` says what goes wrong from now on, on the connections
that are open as well as on new ones: what becomes of new connections (`door`), and of the bytes in each direction
(`Way`: `up` to the target, `down` from it). Runs on a loop in a thread of its own; every call returns when it is so.

    delay, jitter     each byte arrives so much later, in order
    bytes_per_s       of each connection
    cut_after_bytes   each connection is reset when so many bytes of it have passed
    flip_every_bytes  one bit of each n-th byte is flipped
    stopped           nothing passes and nothing ends; what came meanwhile goes on when that is over
    door              "refused": nobody listens; "silent": connections are accepted and never answered
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from tests.support.namespaces import Namespace

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
_CHUNK_BYTES = 64 << 10
_CHUNKS_MAX = 64
"""On their way through one direction of a connection; whoever sends more waits."""
_TICKS_PER_S = 50
"""A rate is kept in pieces of this part of a second."""


@dataclass(frozen=True, slots=True)
class Way:
    """What becomes of the bytes of one direction."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    cut_after_bytes: int | None = None
    flip_every_bytes: int | None = None
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong; by default nothing."""

    door: Literal["open", "refused", "silent"] = "open"
    up: Way = Way()
    down: Way = Way()


STOPPED = Faults(up=Way(stopped=True), down=Way(stopped=True))
"""A black hole: connections stay, and new ones are accepted, but nothing passes."""


class FaultProxy:
    """A running proxy. Addresses are (host, port)."""

    def __init__(self, address: tuple[str, int], target: tuple[str, int], namespace: Namespace | None) -> None:
        self.target = target
        self.faults = Faults()
        self.connections = 0
        """Accepted since the beginning."""
        self.passed_bytes = 0
        self.flipped_bits = 0
        self._namespace = namespace
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._pairs: dict[_Pair, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        self.address = address
        self.changed = asyncio.Event()
        """Set, and replaced, when the faults change."""
        self._call(self._listen)

    def set(self, faults: Faults) -> None:
        """From now on."""

        async def change() -> None:
            self.faults = faults
            self.changed.set()
            self.changed = asyncio.Event()
            await (self._close_door() if faults.door == "refused" else self._listen())

        self._call(change)

    def heal(self) -> None:
        self.set(Faults())

    def reset_connections(self) -> None:
        """Everybody who is connected gets a reset."""

        async def reset() -> None:
            await self._end(list(self._pairs))

        self._call(reset)

    def close(self) -> None:
        async def end() -> None:
            await self._close_door()
            await self._end(list(self._pairs))

        self._call(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        self._loop.close()

    def _run(self) -> None:
        with self._namespace.inside() if self._namespace is not None else contextlib.nullcontext():
            self._loop.run_forever()

    def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_TIMEOUT_S)

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        self._listener = socket.create_server(self.address, backlog=128)
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()[:2]
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def _close_door(self) -> None:
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()
        self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            accepted, _ = await self._loop.sock_accept(listener)
            self.connections += 1
            pair = _Pair(self, accepted, self.connections)
            self._pairs[pair] = task = asyncio.create_task(pair.run())
            task.add_done_callback(lambda _, pair=pair: self._pairs.pop(pair, None))

    async def _end(self, pairs: list[_Pair]) -> None:
        tasks = [self._pairs[pair] for pair in pairs]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Pair:
    """One connection that was accepted, and the one that it is passed on to."""

    def __init__(self, proxy: FaultProxy, accepted: socket.socket, number: int) -> None:
        self._proxy = proxy
        self._accepted = accepted
        self._chance = random.Random(number)

    async def run(self) -> None:
        """Until both directions have ended. A reset on one side, or our own end, is a reset on the other."""
        loop = asyncio.get_running_loop()
        target = socket.socket()
        both = self._accepted, target
        try:
            for one in both:
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._proxy.faults.door == "silent":
                await self._proxy.changed.wait()
            await loop.sock_connect(target, self._proxy.target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(self._accepted, target, "up"))
                group.create_task(self._pass_on(target, self._accepted, "down"))
        except (OSError, ExceptionGroup, asyncio.CancelledError) as error:
            if isinstance(error, ExceptionGroup) and error.split(OSError)[1] is not None:
                raise
            for one in both:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            for one in both:
                one.close()

    async def _pass_on(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(source, queue, name))
            group.create_task(self._send(sink, queue, name))

    async def _receive(self, source: socket.socket, queue: asyncio.Queue[tuple[float, bytes]], name: str) -> None:
        loop = asyncio.get_running_loop()
        data, due_s = b" ", 0.0
        while data:
            data = await loop.sock_recv(source, _CHUNK_BYTES)
            way = self._way(name)
            due_s = max(due_s, loop.time() + way.delay_s + self._chance.random() * way.jitter_s)
            await queue.put((due_s, data))

    async def _send(self, sink: socket.socket, queue: asyncio.Queue[tuple[float, bytes]], name: str) -> None:
        loop = asyncio.get_running_loop()
        passed, free_s = 0, 0.0
        while True:
            due_s, data = await queue.get()
            await self._until(due_s, name)
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            rest = memoryview(data)
            while rest:
                way = self._way(name)
                part = rest[: _part_bytes(way, passed)]
                if way.bytes_per_s is not None:
                    free_s = max(free_s, loop.time()) + len(part) / way.bytes_per_s
                    await self._until(free_s, name)
                await loop.sock_sendall(sink, self._flipped(part, passed, way))
                rest = rest[len(part) :]
                passed += len(part)
                self._proxy.passed_bytes += len(part)
                if way.cut_after_bytes is not None and passed >= way.cut_after_bytes:
                    raise ConnectionAbortedError("cut")

    def _way(self, name: str) -> Way:
        return self._proxy.faults.up if name == "up" else self._proxy.faults.down

    async def _until(self, due_s: float, name: str) -> None:
        """Until then, and until the way is not stopped."""
        loop = asyncio.get_running_loop()
        while (stopped := self._way(name).stopped) or loop.time() < due_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._proxy.changed.wait(), None if stopped else due_s - loop.time())

    def _flipped(self, part: memoryview, passed: int, way: Way) -> bytes | memoryview:
        """`part` begins after `passed` bytes of its direction."""
        every = way.flip_every_bytes
        if every is None or (passed + len(part)) // every == passed // every:
            return part
        data = bytearray(part)
        for place in range((passed // every + 1) * every - 1 - passed, len(data), every):
            data[place] ^= 1 << self._chance.randrange(8)
            self._proxy.flipped_bits += 1
        return bytes(data)


def _part_bytes(way: Way, passed: int) -> int:
    """How much is sent at once after so many bytes of the direction."""
    most = _CHUNK_BYTES
    if way.bytes_per_s is not None:
        most = min(most, max(512, int(way.bytes_per_s / _TICKS_PER_S)))
    if way.cut_after_bytes is not None:
        most = min(most, max(1, way.cut_after_bytes - passed))
    return most


@contextlib.contextmanager
def fault_proxy(
    target: tuple[str, int], address: tuple[str, int] = ("127.0.0.1", 0), namespace: Namespace | None = None
) -> Iterator[FaultProxy]:
    """A proxy from `address` to `target` for the length of a block; both are as the namespace sees them."""
    proxy = FaultProxy(address, target, namespace)
    try:
        yield proxy
    finally:
        proxy.close()
