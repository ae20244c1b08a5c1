"""Handover in any order of events: offers go to the right nodes, and what a drain says is true in the end."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal_core import limits
from shoal_core.errors import InvariantBroken
from shoal_core.verbs.offer import HELD, QUEUED, REFUSED
from shoal_node import handover
from shoal_node.handover import Complete, Handover, Offer

ME, SPACE, SIZE = "me", b"space", 100
S = 1_000_000_000
NODES = ["a", "b", "c", ME]
KEY_COUNT = 10
LINES = st.lists(
    st.builds(lambda line, count: line[:count], st.permutations(NODES), st.integers(0, 3)),
    min_size=KEY_COUNT,
    max_size=KEY_COUNT,
)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_slice_belongs_to_a_walk() -> None:
    plan = Handover()
    with pytest.raises(InvariantBroken):
        plan.walk_slice([(key(1), SPACE, SIZE, ["a"])], ME)
    plan.begin_walk("view")
    plan.walk_ended()
    with pytest.raises(InvariantBroken):
        plan.walk_slice([(key(1), SPACE, SIZE, ["a"])], ME)


def test_another_walk_ends_the_drain() -> None:
    plan = Handover()
    walk(plan, "drain", [(key(1), SPACE, SIZE, ["a"])])
    walk(plan, "view", [(key(1), SPACE, SIZE, [ME, "a"]), (key(2), SPACE, SIZE, [ME, "a"])])
    assert plan.progress()["draining"] is False and not plan.progress()["blocks"] and not plan.needs_walk
    offer = plan.next_offer(0)
    assert offer is not None and (offer.target, offer.reason, len(offer.blocks)) == ("a", "repair", 2)
    walk(plan, "drain", [(key(1), SPACE, SIZE, ["a"])])
    progress = plan.progress()
    assert (progress["blocks"], progress["handed_over_blocks"]) == (1, 0), "a drain from the beginning"


def walk(plan: Handover, reason: str, blocks: list[tuple[bytes, bytes, int, list[str]]]) -> None:
    plan.begin_walk(reason)
    plan.walk_slice(blocks, ME)
    plan.walk_ended()


class HandoverMachine(RuleBasedStateMachine):
    """A node that walks, drains and is changed under; targets that bring, refuse and fall silent, but lose nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(limits, "OFFER_BLOCKS_MAX", 3)
        self.patched.setattr(handover, "QUEUE_MAX", 5)
        self.patched.setattr(handover, "ASKED_MAX", 4)
        self.plan = Handover()
        self.now_ns = 0
        self.here = set(range(KEY_COUNT))
        self.owners = {number: ["a", "b"] for number in range(KEY_COUNT)}
        self.held: set[tuple[str, bytes]] = set()
        self.coming: set[tuple[str, bytes]] = set()
        self.under_way: list[Offer] = []
        self.stale: list[Offer] = []
        self.reason = ""
        self.to_walk: list[int] = []
        self.walked: set[int] = set()

    @rule(reason=st.sampled_from(["view", "drain", "drain"]), change=st.booleans(), lines=LINES)
    def begin(self, reason: str, change: bool, lines: list[list[str]]) -> None:
        before = self.plan.progress()
        if change:
            self.owners = dict(enumerate(lines))
        again = self.reason == reason == "drain"
        self.plan.begin_walk(reason)
        self.reason, self.to_walk, self.walked = reason, sorted(self.here), set()
        self.stale += self.under_way
        self.under_way.clear()
        after = self.plan.progress()
        handed = ("handed_over_blocks", "handed_over_bytes")
        assert [after[name] for name in handed] == [before[name] if again else 0 for name in handed]
        assert self.plan.queued == 0

    @precondition(lambda self: self.to_walk)
    @rule(count=st.integers(1, 6))
    def slice(self, count: int) -> None:
        part, self.to_walk = self.to_walk[:count], self.to_walk[count:]
        part = [number for number in part if number in self.here]
        self.walked |= set(part)
        self.plan.walk_slice([(key(number), SPACE, SIZE, self.owners[number]) for number in part], ME)
        if not self.to_walk:
            self.plan.walk_ended()

    @rule(number=st.integers(0, KEY_COUNT - 1))
    def fill(self, number: int) -> None:
        self.here.add(number)
        if self.reason != "drain":
            self.plan.filled(key(number), SPACE, SIZE, self.owners[number], ME)

    @rule(number=st.integers(0, KEY_COUNT - 1))
    def gets_hot(self, number: int) -> None:
        if number in self.here:
            self.plan.hot(key(number), SPACE, SIZE, self.owners[number], ME)

    @rule(number=st.integers(0, KEY_COUNT - 1))
    def go(self, number: int) -> None:
        self.here.discard(number)
        self.walked.discard(number)
        self.plan.gone(key(number))

    @rule()
    def offer(self) -> None:
        offer = self.plan.next_offer(self.now_ns)
        if offer is None:
            return
        assert 1 <= len(offer.blocks) <= 3 and len(set(offer.blocks)) == len(offer.blocks)
        assert all((other.target, other.reason) != (offer.target, offer.reason) for other in self.under_way)
        for named, space, size in offer.blocks:
            line = self.owners[int.from_bytes(named, "big")]
            assert offer.target != ME and offer.target in line and (space, size) == (SPACE, SIZE)
            if offer.reason == "repair":
                assert ME not in line or line[0] in (ME, offer.target)
            assert offer.reason != "drain" or self.reason == "drain"
        self.under_way.append(offer)

    @precondition(lambda self: self.under_way or self.stale)
    @rule(
        number=st.integers(0, 9), has_all=st.booleans(), short=st.booleans(),
        refuses=st.lists(st.booleans(), min_size=3, max_size=3),
    )  # fmt: skip
    def answer(self, number: int, has_all: bool, short: bool, refuses: list[bool]) -> None:
        offer = self.taken(number)
        states = bytearray()
        if has_all:
            self.held |= {(offer.target, named) for named, _, _ in offer.blocks}
        for (named, _, _), refused in zip(offer.blocks, refuses, strict=False):
            if (offer.target, named) in self.held:
                states.append(HELD)
            elif refused:
                states.append(REFUSED)
            else:
                states.append(QUEUED)
                self.coming.add((offer.target, named))
        self.check(self.plan.answered(offer, bytes(states[: -1 if short else None]), self.now_ns))

    @precondition(lambda self: self.under_way or self.stale)
    @rule(number=st.integers(0, 9))
    def fail(self, number: int) -> None:
        self.plan.failed(self.taken(number), self.now_ns)

    @rule()
    def bring(self) -> None:
        self.held |= self.coming
        self.coming.clear()

    @rule(later_s=st.sampled_from([1, 3, 20, 700]))
    def wait(self, later_s: int) -> None:
        self.now_ns += later_s * S

    def taken(self, number: int) -> Offer:
        offers = self.under_way or self.stale
        return offers.pop(number % len(offers))

    def all_hold(self, numbers: set[int]) -> None:
        for number in numbers:
            assert all((node, key(number)) in self.held for node in self.owners[number] if node != ME)

    def check(self, found: list[Complete]) -> None:
        for complete in found:
            number = int.from_bytes(complete.key, "big")
            line = self.owners[number]
            if complete.reason == "repair" and ME in line[1:]:
                assert (line[0], complete.key) in self.held
            else:
                self.all_hold({number})
            assert complete.is_owned == (ME in line)
            assert complete.reason != "hot" or complete.holder_count == len(line)

    @invariant()
    def progress_is_true(self) -> None:
        progress = self.plan.progress()
        assert progress["draining"] == (self.reason == "drain")
        assert progress["handed_over_blocks"] + progress["left_blocks"] == progress["blocks"]
        for name in ("", "handed_over_", "left_"):
            assert progress[f"{name}bytes"] == SIZE * progress[f"{name}blocks"]
        if self.plan.is_done:
            assert not self.to_walk and not progress["left_blocks"]
            self.all_hold(self.walked)
        assert not (self.plan.is_done and self.plan.needs_walk)

    def teardown(self) -> None:
        """Left alone, with targets that bring what they are offered, any drain is done after a few walks."""
        try:
            for offer in self.under_way:
                self.plan.failed(offer, self.now_ns)
            for _ in range(2 * KEY_COUNT):
                self.plan.begin_walk("drain")
                self.plan.walk_slice(
                    [(key(number), SPACE, SIZE, self.owners[number]) for number in sorted(self.here)], ME
                )
                self.plan.walk_ended()
                while not self.plan.is_done and not self.plan.needs_walk:
                    self.now_ns += handover.PAUSE_NS_MAX
                    while (offer := self.plan.next_offer(self.now_ns)) is not None:
                        held = [(offer.target, named[0]) in self.held for named in offer.blocks]
                        self.held |= {(offer.target, named[0]) for named in offer.blocks}
                        states = bytes(HELD if there else QUEUED for there in held)
                        self.check(self.plan.answered(offer, states, self.now_ns))
                if self.plan.is_done:
                    break
            assert self.plan.is_done
            self.all_hold(self.here)
        finally:
            self.patched.undo()


HandoverMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestHandover = HandoverMachine.TestCase
