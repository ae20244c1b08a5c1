"""Streams on one clock, turns by rank, and room for what nobody waits for yet."""

from __future__ import annotations

import asyncio

from shoal_core import keys, limits
from shoal_core.next_use import CLOCK_MAX
from shoal_node.planning import has_room
from shoal_node.spaces import space_of
from shoal_node.state import NodeState
from shoal_node.streams import IDLE_S, SLACK_ITEMS_MIN, Streams
from shoal_node.turns import Turns

SLAB = 64 << 10
ONE, TWO = (b"client one", b"stream"), (b"client two", b"stream")


def tell(streams: Streams, name: tuple[bytes, bytes], position: int, window: int = 100, now_s: int = 0) -> int:
    offset = streams.tell(0, name, position, position + window, now_s)
    assert offset is not None
    return offset


def test_a_stream_begins_where_the_clock_stands() -> None:
    streams = Streams()
    assert tell(streams, ONE, 5000) == -5000
    tell(streams, ONE, 5300, now_s=10)
    clock = streams.clock(0)
    assert (clock.now, clock.passed, clock.window_end, clock.items_per_s) == (300, 200, 400, 30.0)
    streams.gone(ONE[0])
    assert not clock.live and clock.now == 300
    assert tell(streams, TWO, 5250) == 300 - 5250
    assert clock.live and clock.now == 300


def test_what_has_passed_by_has_done_so_for_the_slowest_but_not_for_one_that_is_silent() -> None:
    streams = Streams()
    clock = streams.clock(0)
    tell(streams, ONE, 0)
    tell(streams, TWO, 0, window=0)
    tell(streams, ONE, 1000)
    assert clock.now == 1000 and clock.passed == 0
    tell(streams, TWO, 500, window=0)
    assert clock.passed == 500 - SLACK_ITEMS_MIN
    tell(streams, ONE, 2000, now_s=IDLE_S + 1)
    assert clock.passed == 1900
    streams.ended(ONE)
    assert clock.live
    streams.ended(TWO)
    assert not clock.live


def test_spaces_have_clocks_of_their_own() -> None:
    streams = Streams()
    tell(streams, ONE, 10)
    assert streams.tell(3, ONE, 900, 1000, 0) == -900
    tell(streams, ONE, 50)
    assert (streams.clock(0).now, streams.clock(3).now) == (40, 0)
    assert streams.spaces(ONE) == [0, 3] and streams.spaces(TWO) == []


def test_a_clock_that_went_too_far_starts_over() -> None:
    streams = Streams()
    tell(streams, ONE, 0)
    tell(streams, ONE, CLOCK_MAX + 1)
    clock = streams.clock(0)
    assert streams.tell(0, ONE, CLOCK_MAX + 2, CLOCK_MAX + 9, 0) is None
    assert not clock.live and clock.now == 0
    assert tell(streams, ONE, CLOCK_MAX + 2) == -CLOCK_MAX - 2
    assert clock.live and clock.now == 0


def test_streams_are_bounded() -> None:
    streams = Streams()
    for number in range(limits.STREAMS_MAX + 10):
        tell(streams, (b"client", number.to_bytes(16, "little")), 0)
    streams.ended((b"client", (limits.STREAMS_MAX + 9).to_bytes(16, "little")))
    assert len(streams._spaces[0].streams) == limits.STREAMS_MAX - 1
    streams.gone(b"client")
    assert not streams.clock(0).live


def full_state(count: int = 8) -> NodeState:
    """Memory of some slots of a slab each, all taken by blocks that are used at 10, 20, 30, ..."""
    state = NodeState((count + 1) * SLAB, SLAB, SLAB, 0)
    state.add_space(space_of("tenant", "default"))
    state.segment_added(count * SLAB)
    state.segment_failed()
    state.streams.tell(0, ONE, 0, 5, 0)
    state.dram.follow(0, state.streams.clock(0))
    for number in range(count):
        slot = state.reserve(0, SLAB, 0)
        assert slot is not None
        entry = state.publish(keys.block_key(bytes(16), number), 0, SLAB, slot, bytes(8), 0, 10 * (number + 1))
        state.unhold(entry)
    return state


def known(state: NodeState) -> list[int]:
    uses = (state.dram.next_use(entry) for entry in state.index.linked())
    return sorted(use for use in uses if use is not None)


def test_a_fill_that_nobody_waits_for_pushes_out_only_what_is_used_later() -> None:
    state = full_state()
    assert state.reserve(0, SLAB, 0, 80) is None and state.reserve(0, SLAB, 0, 500) is None
    assert known(state) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert state.reserve(0, SLAB, 0, 75) is not None
    assert known(state) == [10, 20, 30, 40, 50, 60, 70]
    assert state.reserve(0, SLAB, 0, 75) is None
    assert state.reserve(0, SLAB, 0) is not None, "who waits comes first"
    assert known(state) == [10, 20, 30, 40, 50, 60]


def test_room_is_counted_with_what_is_under_way() -> None:
    state = full_state()
    assert has_room(state, 0, SLAB, 55, 2, may_evict=True)
    assert not has_room(state, 0, SLAB, 55, 3, may_evict=True)
    assert not has_room(state, 0, SLAB, 55, 2, may_evict=False), "it is not used soon enough to push anything out"
    assert not has_room(state, 0, SLAB, 80, 0, may_evict=True)
    state.drop(state.lookup(keys.block_key(bytes(16), 0)))
    assert has_room(state, 0, SLAB, 80, 0, may_evict=False), "a slot is free"
    state.streams.gone(ONE[0])
    assert has_room(state, 0, SLAB, 10**6, 6, may_evict=True)


def test_of_those_who_wait_the_lowest_rank_goes_first_also_when_it_was_lowered_meanwhile() -> None:
    async def run() -> list[str]:
        turns = Turns(1)
        done: list[str] = []

        async def work(name: str, ticket: object) -> None:
            async with ticket:  # type: ignore[attr-defined]
                done.append(name)
                await asyncio.sleep(0)

        tickets = {name: turns.ticket(rank) for name, rank in (
            ("first", (2, 0)), ("late", (2, 9)), ("soon", (2, 3)), ("hurried", (2, 5)), ("cancelled", (0, 0)),
            ("waited for", (0, 0)),
        )}  # fmt: skip
        tasks = {name: asyncio.create_task(work(name, ticket)) for name, ticket in tickets.items()}
        await asyncio.sleep(0)
        tickets["hurried"].hurry((0, 0))
        tickets["late"].hurry((3, 0))
        tasks["cancelled"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        tickets["late"].hurry((0, 0))
        await work("after", turns.ticket((2, 2)))
        assert turns._free == 1
        return done

    assert asyncio.run(run()) == ["first", "waited for", "hurried", "soon", "late", "after"]


def test_a_turn_that_came_to_one_who_was_cancelled_goes_on() -> None:
    async def run() -> None:
        turns = Turns(1)
        first = turns.ticket((0, 0))
        await turns.enter(first)
        waiting = asyncio.create_task(turns.enter(turns.ticket((0, 0))))
        await asyncio.sleep(0)
        turns.leave()
        waiting.cancel()  # its turn has come, it has not run yet
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(5):
            await turns.enter(turns.ticket((0, 0)))

    asyncio.run(run())
