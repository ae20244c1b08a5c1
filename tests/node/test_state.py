"""The node's state against a model that knows what bytes lie in each slot (state_model.py).

Whatever happens in whatever order: a slot that somebody may look at or write to is given to nobody else, a lookup finds
what was published under that key and nothing else, no cap is exceeded, and when all is released and dropped nothing is
left behind.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import precondition, rule

from shoal_core import index
from shoal_core.next_use import USE_MAX
from shoal_node.expiry import expire
from shoal_node.spaces import space_of
from tests.node.state_model import KEY_COUNT, ModelClient, StateModel, block

KEYS = st.integers(0, KEY_COUNT - 1)


class StateMachine(StateModel):
    # Reads and fills.

    @rule(number=KEYS, client=st.integers(0, 3))
    def want(self, number: int, client: int) -> None:
        """A hit is granted, held or just touched; a miss starts a fill or a read from disk."""
        key, _, size, table = block(number)
        entry = self.state.lookup(key)
        if entry != index.NONE:
            assert self.state.index.size[entry] == size and self.state.index.key(entry) == key
            assert self.slots[self.state.index.dram_slot[entry]] == number, "other bytes than were published"
            assert bytes(self.state.digest_table(entry)) == table
            self.state.hit(entry)
            self.state.hold(entry)
            self.pass_on(entry, number, client)
        elif number not in self.fills and number not in self.promotions:
            on_disk = self.state.index.find(key)
            if on_disk != index.NONE:
                self.state.hold(on_disk)
                slot = self.reserved(number)
                if slot is None:
                    self.state.unhold(on_disk)
                else:
                    self.promotions[number] = on_disk, slot
            elif (slot := self.reserved(number)) is not None:
                self.fills[number] = slot

    @rule(
        numbers=st.lists(KEYS, min_size=1, max_size=10),
        client=st.integers(0, 3),
        keep=st.booleans(),
        good=st.booleans(),
    )
    def read(self, numbers: list[int], client: int, keep: bool, good: bool) -> None:
        """Many at once, from the origin at once, as most of life is."""
        for number in numbers:
            self.want(number, client)
            if number in self.fills:
                self.publish(number, client)
            elif number in self.promotions:
                self.promote(number, good, client)
            if not keep and self.held:
                self.sent_one(len(self.held) - 1)

    @rule(start=KEYS, stride=st.sampled_from([1, 5, 7]), flush=st.booleans())
    def scan(self, start: int, stride: int, flush: bool) -> None:
        """All blocks, one after the other, held by nobody: the cache turns over."""
        for step in range(KEY_COUNT):
            self.read([(start + step * stride) % KEY_COUNT], 0, False, True)
            if flush and self.state.disk is not None:
                self.flush()

    @precondition(lambda self: self.fills)
    @rule(data=st.data(), client=st.integers(0, 3))
    def filled(self, data: st.DataObject, client: int) -> None:
        self.publish(data.draw(st.sampled_from(sorted(self.fills))), client)

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def fill_failed(self, data: st.DataObject) -> None:
        slot = self.fills.pop(data.draw(st.sampled_from(sorted(self.fills))))
        self.state.give_back(slot)
        self.carry_out()

    @precondition(lambda self: self.promotions)
    @rule(data=st.data(), good=st.booleans(), client=st.integers(0, 3))
    def read_from_disk(self, data: st.DataObject, good: bool, client: int) -> None:
        self.promote(data.draw(st.sampled_from(sorted(self.promotions))), good, client)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def sent(self, data: st.DataObject) -> None:
        self.sent_one(data.draw(st.integers(0, len(self.held) - 1)))

    # Plans.

    @rule(
        space=st.integers(0, 3),
        client=st.integers(0, 2),
        steps=st.sampled_from([0, 1, 70, 1 << 31]),
        numbers=st.lists(KEYS, max_size=12),
        ahead=st.integers(0, 500),
    )
    def plan(self, space: int, client: int, steps: int, numbers: list[int], ahead: int) -> None:
        """A stream goes on in one space and says when blocks of it are used next."""
        streams = self.state.streams
        if not self.clients:
            return
        name = sorted(self.clients)[client % len(self.clients)], b"stream"
        position = self.positions[name, space] = self.positions.get((name, space), 0) + steps
        while (offset := streams.tell(space, name, position, position + 100, self.now_s)) is None:
            self.positions = {at: known for at, known in self.positions.items() if at[1] != space}
            self.positions[name, space] = position
            for tier in self.state.tiers:
                tier.forget_uses(space)
        clock = streams.clock(space)
        assert clock.live and clock.passed <= clock.now <= clock.window_end
        for tier in self.state.tiers:
            tier.follow(space, clock)
        for number in numbers:
            entry = self.state.index.find(block(number)[0])
            if entry != index.NONE and block(number)[1] == space:
                use = position + offset + ahead + number
                before = [tier.next_use(entry) for tier in self.state.tiers]
                self.state.plan(entry, use)
                sooner = [known if known is not None and clock.now <= known <= use else None for known in before]
                self.planned_uses_stand(entry, use, sooner)

    def planned_uses_stand(self, entry: int, use: int, sooner: list[int | None]) -> None:
        """Noted in every tier that the block is in; a sooner use, which is still ahead, stays the next."""
        for tier, known in zip(self.state.tiers, sooner, strict=True):
            if entry in tier and self.state.spaces[self.state.index.space[entry]].eviction != "pin":
                assert tier.next_use(entry) == (min(use, USE_MAX) if known is None else known)
            else:
                assert tier.next_use(entry) is None

    @rule(number=KEYS, ahead=st.integers(0, 600))
    def fill_ahead(self, number: int, ahead: int) -> None:
        """What nobody waits for pushes out nothing that is used sooner."""
        key, space, _, _ = block(number)
        if self.state.index.find(key) != index.NONE or number in self.fills:
            return
        use = self.state.streams.clock(space).now + ahead
        sooner = self.used_by(space, use)
        slot = self.reserved(number, use)
        assert sooner <= self.used_by(space, use), "a block that is used sooner went"
        if slot is not None:
            self.fills[number] = slot

    def used_by(self, space: int, use: int) -> set[int]:
        """Blocks in memory known to be used then, at the latest."""
        found: set[int] = set()
        for number in range(KEY_COUNT):
            entry = self.state.lookup(block(number)[0])
            known = self.state.dram.next_use(entry) if entry != index.NONE and block(number)[1] == space else None
            if known is not None and known <= use:
                found.add(number)
        return found

    @precondition(lambda self: self.positions)
    @rule(data=st.data())
    def stream_ends(self, data: st.DataObject) -> None:
        name, _ = data.draw(st.sampled_from(sorted(self.positions)))
        self.state.streams.ended(name)
        for at in [at for at in self.positions if at[0] == name]:
            del self.positions[at]
        self.only_living_streams_are_followed()

    def only_living_streams_are_followed(self) -> None:
        for space in range(4):
            living = any(of == space for _, of in self.positions)
            assert self.state.streams.clock(space).live == living

    # Clients.

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def connect(self) -> None:
        identity = self.client_count.to_bytes(16, "little")
        self.client_count += 1
        self.state.leases.client(identity, "test").standing = True
        self.clients[identity] = ModelClient()

    def some_lease(self, data: st.DataObject) -> tuple[bytes, int] | None:
        every = [(identity, entry) for identity, client in self.clients.items() for entry in sorted(client.leases)]
        return data.draw(st.sampled_from(every)) if every else None

    @precondition(lambda self: any(client.leases for client in self.clients.values()))
    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        """Also said twice."""
        identity, entry = self.some_lease(data) or (b"", 0)
        lease, slot, number = self.clients[identity].leases.pop(entry)
        self.clients[identity].asked = [asked for asked in self.clients[identity].asked if asked[0] != entry]
        assert self.slots[slot] == number, "bytes changed under a lease"
        assert self.state.released(identity, [(entry, lease)] * times) == 1
        self.carry_out()

    @rule(data=st.data(), entry=st.integers(-1, 5000), lease=st.integers(-1, 100))
    def release_of_what_is_not_held(self, data: st.DataObject, entry: int, lease: int) -> None:
        for identity, client in self.clients.items():
            if client.leases.get(entry, (None,))[0] != lease:
                assert self.state.released(identity, [(entry, lease)]) == 0
        assert self.state.released(b"nobody", [(entry, lease)]) == 0

    @precondition(lambda self: any(client.asked for client in self.clients.values()))
    @rule(data=st.data(), give=st.booleans())
    def answer_a_revoke(self, data: st.DataObject, give: bool) -> None:
        identity = data.draw(st.sampled_from([name for name, client in self.clients.items() if client.asked]))
        client = self.clients[identity]
        asked, client.asked = client.asked, []
        if give:
            for entry, _ in asked:
                client.leases.pop(entry)
            assert self.state.released(identity, asked) == len(asked)
        else:
            self.state.revoke_busy(identity, asked)
        self.carry_out()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def client_goes(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.clients)))
        for lease, slot, number in self.clients.pop(identity).leases.values():
            assert lease and self.slots[slot] == number
        self.state.connection_ended(identity, events=True)
        self.positions = {at: position for at, position in self.positions.items() if at[0][0] != identity}
        self.only_living_streams_are_followed()
        self.carry_out()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def a_request_connection_comes_and_goes(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.clients)))
        before = dict(self.clients[identity].leases)
        self.state.leases.client(identity, "test")
        self.state.connection_ended(identity, events=False)
        assert set(self.state.leases.clients[identity].entries) == set(before)

    # The node's own affairs.

    @rule(numbers=st.lists(KEYS, min_size=1, max_size=8), quarantine=st.booleans(), erase=st.booleans())
    def drop(self, numbers: list[int], quarantine: bool, erase: bool) -> None:
        for number in numbers:
            self.drop_one(number, quarantine and number == numbers[0], erase)

    def drop_one(self, number: int, quarantine: bool, erase: bool) -> None:
        entry = self.state.index.find(block(number)[0])
        if entry != index.NONE:
            slot = self.state.index.dram_slot[entry]
            quarantine = quarantine and slot != index.NO_SLOT
            if quarantine:
                self.bad.add(slot)
            assert self.state.drop(entry, erase=erase, quarantine=quarantine)
            assert not self.state.drop(entry), "dropped twice"
            assert self.state.index.find(block(number)[0]) == index.NONE
            self.carry_out()

    @rule(
        number=st.integers(0, 3),
        eviction=st.sampled_from(["s3fifo", "epoch", "pin"]),
        quota=st.sampled_from([None, 70_000, 200_000]),
        ttl_s=st.sampled_from([None, None, 10]),
    )
    def declare(self, number: int, eviction: Any, quota: int | None, ttl_s: int | None) -> None:
        """A space gets other settings while its blocks are there."""
        name = self.state.spaces[number].name
        space = space_of("tenant", name, eviction=eviction, quota_bytes=quota, ttl_s=ttl_s)
        assert self.state.add_space(space, self.now_s) == number
        self.carry_out()

    @rule(seconds=st.integers(0, 12))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds
        while expire(self.state, self.now_s):
            pass
        self.carry_out()
        if seconds > 10:
            timed = {number for number, space in enumerate(self.state.spaces) if space.ttl_s is not None}
            known = [n for n in range(KEY_COUNT) if self.state.index.find(block(n)[0]) != index.NONE]
            assert not [number for number in known if block(number)[1] in timed]

    @precondition(lambda self: self.state.disk is not None)
    @rule()
    def write_behind(self) -> None:
        job = self.state.next_disk_write(self.now_s)
        self.carry_out()
        if job is not None:
            entry, slot = job
            number = self.slots[self.state.index.dram_slot[entry]]
            assert number is not None and self.state.index.key(entry) == block(number)[0]
            assert slot not in [written for _, written, _ in self.disk_writes]
            assert slot not in [self.state.index.disk_slot[entry] for entry, _ in self.promotions.values()]
            self.disk_slots[slot] = number
            self.disk_writes.append((entry, slot, number))

    @precondition(lambda self: self.state.disk is not None)
    @rule()
    def flush(self) -> None:
        """The disk keeps up."""
        while self.state.disk_queue:
            self.write_behind()
        while self.disk_writes:
            self.finish_write(0, True)

    @precondition(lambda self: self.disk_writes)
    @rule(data=st.data(), good=st.booleans())
    def written(self, data: st.DataObject, good: bool) -> None:
        self.finish_write(data.draw(st.integers(0, len(self.disk_writes) - 1)), good)

    @precondition(lambda self: self.growth)
    @rule(good=st.sampled_from([True, True, True, False]))
    def memory_arrives(self, good: bool) -> None:
        size, self.growth = self.growth, 0
        if good:
            self.state.segment_added(size)
        else:
            self.state.segment_failed()
        self.carry_out()


TestStateMachine = StateMachine.TestCase
TestStateMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
