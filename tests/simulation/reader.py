"""One reader's connections to nodes, and single calls: what `links` does with sockets."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from shoal_core import verbs, view
from shoal_core.errors import DeadlineExceeded, NodeGone, ShoalError
from shoal_core.gather import Gather
from shoal_core.router import Router
from shoal_core.verbs import complain, get, hello
from shoal_transport.asking import Item, Told
from tests.simulation.gathering import GatherRun, encode
from tests.simulation.network import Connection, Machine, Network
from tests.simulation.world import LATE, Process, S, Work

IDLE_MAX = 8


class Reader:
    """A process that asks nodes."""

    def __init__(
        self, network: Network, process: Process, machine: Machine, router: Router, identity: bytes,
        run: type[GatherRun] = GatherRun,
    ) -> None:  # fmt: skip
        self.network, self.world = network, network.world
        self.process, self.machine, self.router = process, machine, router
        self.identity = identity
        self.told = Told()
        self._run = run
        self.late_epoch = 0
        self.corrupt = 0
        self.asked = 0
        """Requests of gathers."""
        self.running: dict[GatherRun, None] = {}
        self._idle: dict[str, list[Connection]] = {}

    # Connections

    def idle(self, node_id: str) -> Connection | None:
        idle = self._idle.get(node_id)
        while idle:
            connection = idle.pop()
            if not connection.broken:
                return connection
        return None

    def open(self, node_id: str, until_ns: int, local: bool = False) -> Generator[Any, Any, Connection]:
        return self.network.connect(
            self.process, self.machine, node_id, self.identity, hello.REQUESTS, until_ns, local
        )  # fmt: skip

    def give_back(self, node_id: str, connection: Connection) -> None:
        idle = self._idle.setdefault(node_id, [])
        if not connection.broken and len(idle) < IDLE_MAX:
            idle.append(connection)
        else:
            connection.close()

    def forget(self, node_id: str) -> None:
        for connection in self._idle.pop(node_id, []):
            connection.close()

    def keep_only(self, known: view.View) -> None:
        ids = {node.id for node in known.nodes}
        for node_id in [node_id for node_id in self._idle if node_id not in ids]:
            self.forget(node_id)

    def call(self, node_id: str, kind: int, request: Any, until_ns: int) -> Generator[Any, Any, Any]:
        """One verb whose reply has no payload."""
        connection = self.idle(node_id)
        if connection is not None:
            try:
                return (yield from self._called(node_id, connection, kind, request, until_ns))
            except NodeGone:
                self.forget(node_id)
        connection = yield from self.open(node_id, until_ns)
        return (yield from self._called(node_id, connection, kind, request, until_ns))

    def _called(
        self, node_id: str, connection: Connection, kind: int, request: Any, until_ns: int
    ) -> Generator[Any, Any, Any]:
        answer = yield connection.post(encode(kind, request), twice=True), until_ns - self.world.now_ns
        if answer is LATE:
            connection.close()
            raise DeadlineExceeded(f"{node_id}: no answer in time")
        if isinstance(answer, NodeGone):
            raise NodeGone(str(answer))
        self.give_back(node_id, connection)
        header, body, _ = answer
        return verbs.decode_reply(kind, header, body)

    def run(self, gather: Gather, items: Sequence[Item], until_ns: int, hops: int,
            got: Callable[[list[int]], None] = lambda _: None) -> Generator[Any, Any, list[int]]:  # fmt: skip
        """Carry a gather out; what no node gave is left to the origin. DeadlineExceeded when it is not over in time."""
        run = self._run(self, gather, items, until_ns, hops, got)
        self.running[run] = None
        try:
            run.start()
            if (yield run.over, until_ns - self.world.now_ns) is LATE and gather.left:
                raise DeadlineExceeded("no node answered within the deadline")
            return run.origin
        finally:
            del self.running[run]
            run.close()

    def complain(self, node: view.Node, answers: list[get.Inline]) -> Work:
        """The node hashes its own copies; nobody waits for that."""
        try:
            for answer in answers:
                request = complain.Request(answer.entry, answer.generation)
                yield from self.call(node.id, complain.KIND, request, self.world.now_ns + 5 * S)
        except ShoalError:
            return
