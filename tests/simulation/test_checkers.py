"""The checkers can fail: each is shown a system that is broken in its way, and must see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any

import pytest

from shoal_core import digests, frame, keys, limits, verbs
from shoal_core.budget import Gate
from shoal_core.gather import Ask
from shoal_core.verbs import fetch, get, release
from shoal_node.fill import Flight
from shoal_node.objects import ObjectRecord
from shoal_node.spaces import Space
from shoal_transport import asking
from tests.simulation import running
from tests.simulation.gathering import GatherRun
from tests.simulation.network import Connection
from tests.simulation.origin import Origin
from tests.simulation.plan import Plan
from tests.simulation.sim_client import Piece, SimClient
from tests.simulation.sim_fill import SimFiller
from tests.simulation.sim_node import Place, SimNode, SimSession
from tests.simulation.simulation import Parts
from tests.simulation.world import Process, S, Work

CALM = Plan(seed=7, node_count=3, client_count=8, replica_count=2, think_ns=S // 10, quiet_ns=30 * S)


def failure_of(parts: Parts, plan: Plan) -> str:
    """The last lines of a run that fails."""
    return running.play(plan.seed, parts, plan).failure.rpartition("\n  ")[2]


@pytest.mark.parametrize(
    "plan",
    [
        CALM,
        dataclasses.replace(CALM, faults=("flipped",)),
        dataclasses.replace(CALM, faults=("changes",)),
        dataclasses.replace(CALM, faults=("disk flips",), disk_slabs=16, is_roomy=False, dram_bytes=700 << 10),
        dataclasses.replace(CALM, faults=("refusing origin",), load_ns=3 * S),
        dataclasses.replace(CALM, is_roomy=False, spaces=("default", "small"), faults=("late",)),
    ],
    ids=lambda plan: f"{plan.faults}",
)
def test_what_is_not_broken_passes(plan: Plan) -> None:
    """The plans of the tests below, with nothing broken."""
    assert running.play(plan.seed, None, plan).failure == ""


class Unchecked(GatherRun):
    """Takes all bytes for good."""

    def outcome(self, ask: Ask, wanted: list[Any], header: frame.Header, body: bytes, payload: bytes) -> asking.Outcome:
        kind = fetch.KIND if ask.only_if_held else get.KIND
        reply = verbs.decode_reply(kind, header, body)
        items: list[Any] = []
        start = 0
        for answer in reply.items:
            if isinstance(answer, get.Inline):
                seen = memoryview(payload)[start : start + answer.length]
                start += answer.length
                answer = get.Inline(
                    answer.source, answer.offset, answer.length, digests.page_digests(seen), answer.entry, 0
                )
            items.append(answer)
        changed = fetch.Reply(items, 1, 0.0) if ask.only_if_held else get.Reply(items)
        return super().outcome(ask, wanted, header, verbs.encode(changed), payload)


def test_digests_that_nobody_looks_at() -> None:
    plan = dataclasses.replace(CALM, faults=("flipped",))
    assert "other bytes than were written" in failure_of(Parts(run_of_clients=Unchecked), plan)


class Credulous(SimNode):
    """Believes its disk."""

    class filler_of(SimFiller):  # noqa: N801
        def promoted(self, state: Any, flight: Flight, slot: int, table: bytes) -> bool:
            state.index.checksum[flight.entry] = digests.checksum(table)
            return super().promoted(state, flight, slot, table)


def test_bytes_from_disk_that_nobody_checks() -> None:
    plan = dataclasses.replace(CALM, faults=("disk flips",), disk_slabs=16, is_roomy=False, dram_bytes=700 << 10)
    assert "other bytes than were written" in failure_of(Parts(node=Credulous), plan)


class AnyVersion(Origin):
    """Gives what is there now, whichever version was asked for."""

    def read(
        self, reader: Process, name: str, record: ObjectRecord, first: int, count: int
    ) -> Generator[Any, Any, list[bytes]]:
        stored = next(stored for stored in self.objects if stored.url == record.url)
        present = self.record(stored)
        yield from super().read(reader, name, present, first, count)
        wanted = [keys.block_key(present.fingerprint, block) for block in range(first, first + count)]
        return [
            self.content(key, record.block_bytes(block))
            for key, block in zip(wanted, range(first, first + count), strict=True)
        ]


def test_bytes_of_another_version() -> None:
    plan = dataclasses.replace(CALM, faults=("changes",))
    assert "other bytes than were written" in failure_of(Parts(origin=AnyVersion), plan)


class TooEarly(SimNode):
    """Gives the slot away before its bytes were sent, once it is full."""

    def accept(self, connection: Connection, identity: bytes, role: str) -> SimSession:
        return _TooEarly(self, connection, identity, role)


class _TooEarly(SimSession):
    def _items(self, request: get.Request, state: Any, outcomes: list[Any]) -> tuple[list[Any], Any]:
        items, held = super()._items(request, state, outcomes)
        for _, block in held:
            state.unhold(block.entry)
            state.drop(block.entry)
            block.memory[:1] = bytes([block.memory[0] ^ 255])  # what the slot's next block would do
        return items, held

    def _unhold(self, held: Any) -> None:
        pass


def test_a_slot_that_is_used_again_while_it_is_sent() -> None:
    """Readers refuse such bytes and get others: that it happens at all is what is seen."""
    plan = dataclasses.replace(CALM, is_roomy=False, faults=("late",), home_fraction=0.0)
    assert "bytes did not match their digests" in failure_of(Parts(node=TooEarly), plan)


class Holding(SimNode):
    """Forgets one hold in ten."""

    def accept(self, connection: Connection, identity: bytes, role: str) -> SimSession:
        return _Holding(self, connection, identity, role)


class _Holding(SimSession):
    def _unhold(self, held: Any) -> None:
        if self._node_of.world.chance.random() < 0.9:
            super()._unhold(held)


def test_a_hold_that_is_not_ended() -> None:
    assert "holds left" in failure_of(Parts(node=Holding), dataclasses.replace(CALM, home_fraction=0.0))


class Deaf(SimNode):
    """Does not hear of clients' ends."""

    def accept(self, connection: Connection, identity: bytes, role: str) -> SimSession:
        return _Deaf(self, connection, identity, role)


class _Deaf(SimSession):
    def _close(self) -> None:
        pass

    def _release(self, request: release.Request) -> release.Reply:
        return release.Reply(0)


def test_leases_of_clients_that_are_gone() -> None:
    assert "leases left" in failure_of(Parts(node=Deaf), dataclasses.replace(CALM, home_fraction=1.0))


class Slots(SimNode):
    """Does not give slots back that were not filled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state.give_back = lambda slot: None  # type: ignore[method-assign]


def test_a_slot_that_is_not_given_back() -> None:
    plan = dataclasses.replace(CALM, faults=("refusing origin",), load_ns=3 * S)
    assert "slots reserved left" in failure_of(Parts(node=Slots), plan)


class Patient(SimClient):
    """Takes its time."""

    def read(self, pieces: list[Piece], until_ns: int) -> Work:
        yield from super().read(pieces, until_ns)
        yield max(0, until_ns - self.world.now_ns) + S


def test_a_read_that_ends_after_its_deadline() -> None:
    assert "deadline" in failure_of(Parts(client=Patient), CALM)


class Endless(SimClient):
    """One of its reads never ends."""

    def read(self, pieces: list[Piece], until_ns: int) -> Work:
        yield from super().read(pieces, until_ns)
        yield 1000 * S


def test_a_read_that_does_not_end() -> None:
    assert "within their deadline" in failure_of(Parts(client=Endless), CALM)


class Busy(SimClient):
    """Leaves a task behind."""

    def read(self, pieces: list[Piece], until_ns: int) -> Work:
        yield from super().read(pieces, until_ns)
        self.world.spawn(self.process, _for_ever())


def _for_ever() -> Work:
    while True:
        yield S


def test_a_task_that_is_left() -> None:
    assert "tasks left" in failure_of(Parts(client=Busy), CALM)


class Lonely(SimNode):
    """Never asks its peers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.peers.cluster.ways = lambda *_: []  # type: ignore[method-assign]


def test_an_origin_that_is_asked_by_every_node() -> None:
    plan = dataclasses.replace(CALM, home_fraction=1.0)
    assert "times at the origin, 1 is allowed" in failure_of(Parts(node=Lonely), plan)


class Greedy(SimClient):
    """Reads everything from the origin, all at once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gate = Gate(1000, self.world.chance)

    def read(self, pieces: list[Piece], until_ns: int) -> Work:
        yield from self._from_origin(pieces, until_ns)


def test_too_many_reads_at_the_origin_at_once() -> None:
    plan = dataclasses.replace(CALM, faults=("late",), read_blocks_max=12, object_blocks=30)
    assert f"{limits.DIRECT_READS_MAX} are allowed" in failure_of(Parts(client=Greedy), plan)


def test_reads_around_nodes_that_answer() -> None:
    assert "it read around the nodes" in failure_of(Parts(client=Greedy), CALM)


class Boundless(SimNode):
    """Knows of no quota."""

    def __init__(self, place: Place, config: Any, spaces: Iterable[Space], *rest: Any) -> None:
        for space in (spaces := list(spaces)):
            space.quota_bytes = None
        super().__init__(place, config, spaces, *rest)


def test_a_quota_that_is_exceeded() -> None:
    plan = dataclasses.replace(CALM, is_roomy=False, spaces=("default", "small"), faults=("late",), load_ns=10 * S)
    plan = dataclasses.replace(plan, object_blocks=40, block_size_bytes=4096, client_count=20)
    assert "space small is over its quota" in failure_of(Parts(node=Boundless), plan)


class Selfish(SimNode):
    """Offers nothing to anybody."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.peers.handover.next_offer = lambda *_: None  # type: ignore[method-assign]


def test_owners_that_do_not_come_to_hold_their_blocks() -> None:
    assert " lack what " in failure_of(Parts(node=Selfish), CALM)


class Hasty(SimClient):
    """Takes every hedge that it wants."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.router.hedge_ns = lambda node: 200_000  # type: ignore[method-assign]
        self.router.may_hedge = self._always  # type: ignore[method-assign]

    def _always(self) -> bool:
        self.router.hedges += 1
        return True


def test_more_hedges_than_one_in_ten() -> None:
    plan = dataclasses.replace(CALM, faults=("late",), home_fraction=0.0, client_count=3, load_ns=20 * S)
    assert "hedges for" in failure_of(Parts(client=Hasty), plan)
