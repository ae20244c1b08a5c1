"""A quota that is lowered while clients hold leases: what is too much is asked back until it has gone."""

from __future__ import annotations

from shoal_core import keys, limits
from shoal_node import actions
from shoal_node.leases import Client
from shoal_node.spaces import space_of
from shoal_node.state import NodeState

BLOCK = 4096
COUNT = 100
CLIENT = bytes(16)


def lent_out(free: int = 0) -> tuple[NodeState, Client, list[bytes]]:
    """A state whose space 'set' has COUNT blocks, each leased to one client, and so many more; and their keys."""
    state = NodeState(4 << 20, 256 << 10, 64 << 10, 1 << 30)
    space = state.add_space(space_of("tenant", "set"))
    client = state.leases.client(CLIENT, "reader")
    client.standing = True
    found: list[bytes] = []
    for number in range(COUNT + free):
        slot = reserve(state, space)
        key = keys.block_key(bytes(16), number)
        entry = state.publish(key, space, BLOCK, slot, bytes(8), 0)
        if number < COUNT:
            state.leases.grant(client, entry)
        else:
            state.unhold(entry)
        found.append(key)
    state.actions.clear()
    return state, client, found


def reserve(state: NodeState, space: int) -> int:
    while (slot := state.reserve(space, BLOCK, 0)) is None:
        grow = next(action for action in state.actions if isinstance(action, actions.Grow))
        state.actions.clear()
        state.segment_added(grow.size)
    return slot


def lower(state: NodeState, blocks: int) -> None:
    state.add_space(space_of("tenant", "set", quota_bytes=blocks * BLOCK))


def asked(state: NodeState) -> list[tuple[int, int]]:
    """Leases that are asked back now."""
    grants = [grant for action in state.actions if isinstance(action, actions.Revoke) for grant in action.grants]
    state.actions.clear()
    return grants


def used_blocks(state: NodeState) -> int:
    return state.dram.slabs.space_used_bytes(0) // BLOCK


def test_what_is_given_back_goes_and_the_next_are_asked_for() -> None:
    state, _, _ = lent_out()
    lower(state, 20)
    while wanted := asked(state):
        assert len(wanted) <= limits.REVOKE_BATCH_MAX
        state.released(CLIENT, wanted)
        state.check()
    assert used_blocks(state) == 20
    assert not state.over_quota


def test_a_block_that_is_granted_anew_before_its_release_arrives_is_asked_back_again() -> None:
    """The release then names an old lease and ends nothing."""
    state, client, found = lent_out()
    lower(state, 20)
    for _ in range(3):
        wanted = asked(state)
        assert wanted
        for key in found:
            entry = state.lookup(key)
            if entry in dict(wanted):
                state.hold(entry)
                state.leases.grant(client, entry)
        assert state.released(CLIENT, wanted) == 0
        state.check()
    while wanted := asked(state):  # now nobody reads
        state.released(CLIENT, wanted)
    assert used_blocks(state) == 20


def test_what_nobody_looks_at_goes_at_once_however_much_is_looked_at() -> None:
    state, _, _ = lent_out(free=COUNT)
    lower(state, COUNT + 20)
    assert used_blocks(state) == COUNT + 20
    state.check()


def test_what_was_refused_for_a_plan_while_memory_grows_is_told_when_it_has_grown() -> None:
    """It waits for that memory: without a word it would wait for its whole time, and keep others from theirs."""
    state, _, _ = lent_out()
    lower(state, COUNT)
    state.released(CLIENT, [(entry, lease) for entry, lease in state.leases.clients[CLIENT].entries.items()])
    clock = state.streams.clock(0)
    state.streams.tell(0, (CLIENT, bytes(16)), 0, 10, 0)
    state.dram.follow(0, clock)
    for entry in range(COUNT):
        state.plan(entry, 5)
    state.layout.growing_bytes = 1 << 20
    assert state.reserve(0, BLOCK, 0, use=9) is None
    state.actions.clear()
    state.segment_failed()
    assert any(isinstance(action, actions.SpaceFreed) for action in state.actions)


def test_what_is_found_on_disk_at_the_start_keeps_to_the_quota_of_now() -> None:
    """The quota was lowered while the node was away, or was higher only since it was declared anew."""
    state = NodeState(4 << 20, 256 << 10, 64 << 10, 1 << 30, disk_slab_count=4)
    space = state.add_space(space_of("tenant", "set", quota_bytes=10 * BLOCK))
    assert state.disk is not None
    slab = state.disk.assign(space, state.disk.slabs.class_of(BLOCK))
    assert slab is not None
    for number in range(25):
        slot = slab * limits.SLAB_SLOTS_MAX + number
        assert state.recovered(keys.block_key(bytes(16), number), space, BLOCK, 1, slot, 0)
    state.recovery_ended()
    assert state.disk.slabs.space_used_bytes(space) == 10 * BLOCK and len(state.index) == 10
    assert not state.over_quota
    state.check()
