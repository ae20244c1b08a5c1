"""Handover: who is offered what, what becomes of each answer, and when a drain is done."""

from __future__ import annotations

import pytest

from shoal_core import limits
from shoal_core.verbs.offer import HELD, QUEUED, REFUSED
from shoal_node import handover
from shoal_node.handover import Complete, Handover, Offer

ME, SPACE, SIZE = "me", b"space", 100
S = 1_000_000_000


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def blocks(owners: list[str], *numbers: int) -> list[tuple[bytes, bytes, int, list[str]]]:
    return [(key(number), SPACE, SIZE, owners) for number in numbers]


def walk(plan: Handover, reason: str, *slices: list[tuple[bytes, bytes, int, list[str]]]) -> None:
    plan.begin_walk(reason)
    for part in slices:
        plan.walk_slice(part, ME)
    plan.walk_ended()


def offers(plan: Handover, now_ns: int = 0) -> list[Offer]:
    """All that may go now."""
    found: list[Offer] = []
    while (offer := plan.next_offer(now_ns)) is not None:
        found.append(offer)
    return found


def said(plan: Handover, now_ns: int = 0) -> dict[tuple[str, str], list[int]]:
    """What is offered now, as numbers of keys."""
    return {
        (offer.target, offer.reason): [int.from_bytes(named[0], "big") for named in offer.blocks]
        for offer in offers(plan, now_ns)
    }


def answer_all(plan: Handover, state: int, now_ns: int = 0) -> list[Complete]:
    """Until nothing can be offered at that time."""
    found: list[Complete] = []
    while (offer := plan.next_offer(now_ns)) is not None:
        found += plan.answered(offer, bytes([state]) * len(offer.blocks), now_ns)
    return found


def sums(plan: Handover) -> tuple[int | bool, ...]:
    progress = plan.progress()
    for name in ("", "handed_over_", "left_"):
        assert progress[f"{name}bytes"] == SIZE * progress[f"{name}blocks"]
    return tuple(progress[name] for name in ("blocks", "handed_over_blocks", "left_blocks", "done"))


def test_after_a_fill_the_first_owner_offers_to_the_others() -> None:
    plan = Handover()
    plan.filled(key(1), SPACE, SIZE, [ME, "a", "b"], ME)
    plan.filled(key(2), SPACE, SIZE, ["a", ME], ME)
    plan.filled(key(3), SPACE, SIZE, ["a", "b"], ME)
    plan.filled(key(4), SPACE, SIZE, [ME], ME)
    plan.filled(key(5), SPACE, SIZE, [], ME)
    first, second = offers(plan)
    assert first == ("a", "replica", [(key(1), SPACE, SIZE)])
    assert second == ("b", "replica", [(key(1), SPACE, SIZE)])
    assert plan.progress()["draining"] is False and not plan.is_done


@pytest.mark.parametrize("reason", ["view", "repair", "scrub"])
def test_a_walk_offers_to_who_should_have_it(reason: str) -> None:
    plan = Handover()
    walk(
        plan, reason, blocks([ME, "a", "b"], 1), blocks(["a", ME, "b"], 2), blocks(["b", "c"], 3), blocks([], 4),
        blocks([ME], 5),
    )  # fmt: skip
    assert said(plan) == {("a", "repair"): [1, 2], ("b", "repair"): [1, 3], ("c", "repair"): [3]}


def test_a_first_owner_that_lost_a_block_is_offered_it_by_the_others() -> None:
    """As after a restart with an empty memory. It tells the rest when it has it."""
    plan = Handover()
    walk(plan, "scrub", blocks(["a", ME, "b"], 1), blocks(["a", "b", ME], 2))
    assert said(plan) == {("a", "repair"): [1, 2]}


def test_in_a_drain_all_owners_are_offered_everything() -> None:
    plan = Handover()
    walk(plan, "drain", blocks(["a", "b"], 1), blocks(["b", ME, "a"], 2))
    assert said(plan) == {("a", "drain"): [1, 2], ("b", "drain"): [1, 2]}


def test_a_hot_block_goes_to_all_in_line_and_counts_when_they_have_it() -> None:
    plan = Handover()
    plan.hot(key(1), SPACE, SIZE, ["a", ME, "b"], ME)
    first, second = offers(plan)
    assert (first.target, first.reason, second.target) == ("a", "hot", "b")
    assert plan.answered(first, bytes([HELD]), 0) == []
    assert plan.answered(second, bytes([QUEUED]), 0) == []
    assert offers(plan, handover.ASK_AGAIN_NS - 1) == []
    assert answer_all(plan, HELD, handover.ASK_AGAIN_NS) == [Complete(key(1), "hot", 3, True)]


def test_a_hot_block_that_gets_hotter_counts_only_with_all_of_the_longer_line() -> None:
    plan = Handover()
    plan.hot(key(1), SPACE, SIZE, [ME, "a"], ME)
    plan.hot(key(1), SPACE, SIZE, [ME, "a", "b", "c"], ME)
    assert plan.queued == 3
    assert answer_all(plan, HELD) == [Complete(key(1), "hot", 4, True)]


def test_the_same_block_for_several_reasons() -> None:
    plan = Handover()
    plan.begin_walk("repair")
    plan.walk_slice(blocks([ME, "a"], 1), ME)
    plan.filled(key(1), SPACE, SIZE, [ME, "a"], ME)
    plan.filled(key(1), SPACE, SIZE, [ME, "a"], ME)
    plan.hot(key(1), SPACE, SIZE, [ME, "a", "b"], ME)
    assert said(plan) == {
        ("a", "repair"): [1], ("a", "replica"): [1], ("a", "hot"): [1], ("b", "hot"): [1]
    }  # fmt: skip


def test_an_offer_is_bounded_and_targets_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OFFER_BLOCKS_MAX", 2)
    plan = Handover()
    walk(plan, "repair", blocks(["a", "b"], 1, 2, 3))
    plan.filled(key(9), SPACE, SIZE, [ME, "a"], ME)
    seen: list[tuple[str, str, int]] = []
    while (offer := plan.next_offer(0)) is not None:
        seen.append((offer.target, offer.reason, len(offer.blocks)))
        plan.answered(offer, bytes([HELD]) * len(offer.blocks), 0)
    assert seen == [("a", "repair", 2), ("b", "repair", 2), ("a", "replica", 1), ("a", "repair", 1), ("b", "repair", 1)]


def test_one_offer_at_a_time_for_a_target_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OFFER_BLOCKS_MAX", 1)
    plan = Handover()
    walk(plan, "repair", blocks(["a"], 1, 2))
    first = plan.next_offer(0)
    assert first is not None and plan.next_offer(0) is None
    plan.answered(first, bytes([HELD]), 0)
    assert said(plan) == {("a", "repair"): [2]}
    assert plan.answered(first, bytes([REFUSED]), 0) == [], "twice is once"
    plan.failed(first, 0)
    assert plan.refused == 0 and plan.next_offer(1) is None
    plan.filled(key(1), SPACE, SIZE, [ME, "b"], ME)
    assert plan.next_offer(1, "a") is None and plan.next_offer(1, "b") is not None


def test_who_does_not_answer_is_left_alone_for_twice_as_long_each_time() -> None:
    plan = Handover()
    walk(plan, "repair", blocks(["a"], 1), blocks(["b"], 2))
    now_ns = 0
    for expected_ns in (S // 2, S, 2 * S, 4 * S, 8 * S, handover.PAUSE_NS_MAX, handover.PAUSE_NS_MAX):
        offer = plan.next_offer(now_ns, "a")
        assert offer is not None and offer.blocks == [(key(1), SPACE, SIZE)]
        plan.failed(offer, now_ns)
        assert plan.next_offer(now_ns + expected_ns - 1, "a") is None
        now_ns += expected_ns
    assert plan.next_offer(0, "b") is not None, "others have nothing to do with it"
    walk(plan, "repair", blocks(["a"], 1))
    offer = plan.next_offer(now_ns - 1, "a")
    assert offer is not None, "a new walk asks everybody at once"
    plan.filled(key(3), SPACE, SIZE, [ME, "a"], ME)
    plan.failed(offer, now_ns)
    answer_all(plan, HELD, now_ns + S // 2)
    plan.filled(key(3), SPACE, SIZE, [ME, "a"], ME)
    offer = plan.next_offer(now_ns + S // 2, "a")
    assert offer is not None
    plan.failed(offer, now_ns + S // 2)
    assert plan.next_offer(now_ns + S, "a") is not None, "it begins with the short pause again"


def test_what_is_held_is_done_and_what_is_refused_is_left() -> None:
    plan = Handover()
    walk(plan, "repair", blocks(["a"], 1, 2, 3))
    (offer,) = offers(plan)
    assert plan.answered(offer, bytes([HELD, REFUSED, 77]), 0) == [Complete(key(1), "repair", 1, False)]
    assert plan.refused == 2 and plan.queued == 0 and offers(plan, 10**15) == []
    walk(plan, "scrub", blocks(["a"], 2, 3))
    assert said(plan) == {("a", "repair"): [2, 3]}


@pytest.mark.parametrize("states", [b"", bytes([HELD]), bytes([HELD, REFUSED, HELD, HELD])])
def test_a_reply_of_another_length_is_a_refusal_of_the_rest(states: bytes) -> None:
    plan = Handover()
    walk(plan, "drain", blocks(["a"], 1, 2))
    (offer,) = offers(plan)
    assert len(plan.answered(offer, states, 0)) == min(len(states), 1)
    assert plan.refused == 2 - min(len(states), 1)


def test_a_replica_that_will_come_is_done() -> None:
    plan = Handover()
    plan.filled(key(1), SPACE, SIZE, [ME, "a"], ME)
    assert answer_all(plan, QUEUED) == []
    assert plan.queued == plan.late == plan.refused == 0 and plan.next_offer(10**15) is None


@pytest.mark.parametrize("reason", ["repair", "drain"])
def test_what_will_come_is_asked_again_until_it_is_held(reason: str) -> None:
    plan = Handover()
    walk(plan, reason, blocks(["a"], 1, 2))
    answer_all(plan, QUEUED, 0)
    assert plan.next_offer(handover.ASK_AGAIN_NS - 1) is None
    (offer,) = offers(plan, handover.ASK_AGAIN_NS)
    found = plan.answered(offer, bytes([QUEUED, HELD]), handover.ASK_AGAIN_NS)
    assert found == [Complete(key(2), reason, 1, False)]
    (offer,) = offers(plan, 2 * handover.ASK_AGAIN_NS)
    assert [named[0] for named in offer.blocks] == [key(1)]
    assert len(plan.answered(offer, bytes([HELD]), 2 * handover.ASK_AGAIN_NS)) == 1


def test_what_never_comes_is_given_up() -> None:
    plan = Handover()
    walk(plan, "drain", blocks(["a"], 1))
    now_ns = 0
    while plan.queued:
        answer_all(plan, QUEUED, now_ns)
        now_ns += handover.ASK_AGAIN_NS
        assert now_ns <= handover.ASK_NS_MAX + 2 * handover.ASK_AGAIN_NS
    assert now_ns >= handover.ASK_NS_MAX
    assert plan.late == 1 and plan.needs_walk and not plan.is_done


def test_only_so_many_are_waited_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OFFER_BLOCKS_MAX", 3)
    monkeypatch.setattr(handover, "ASKED_MAX", 4)
    plan = Handover()
    walk(plan, "repair", blocks(["a"], *range(10)))
    answered: list[int] = []
    while (offer := plan.next_offer(0)) is not None:
        answered.append(len(offer.blocks))
        plan.answered(offer, bytes([QUEUED] * 3), 0)
    assert answered == [3, 1]
    assert plan.next_offer(handover.ASK_AGAIN_NS - 1) is None and plan.queued == 10
    offer = plan.next_offer(handover.ASK_AGAIN_NS)
    assert offer is not None and [named[0] for named in offer.blocks] == [key(0), key(1), key(2)]
    plan.answered(offer, bytes([HELD] * 3), handover.ASK_AGAIN_NS)
    assert said(plan, handover.ASK_AGAIN_NS) == {("a", "repair"): [3, 4, 5]}


def test_a_block_is_complete_when_all_hold_it() -> None:
    plan = Handover()
    walk(plan, "view", blocks([ME, "a", "b"], 1), blocks(["a", "b"], 2))
    first, second = offers(plan)
    assert plan.answered(first, bytes([HELD, HELD]), 0) == []
    assert plan.answered(second, bytes([HELD, HELD]), 0) == [
        Complete(key(1), "repair", 2, True),
        Complete(key(2), "repair", 2, False),
    ]


def test_a_block_that_is_gone_is_not_offered() -> None:
    plan = Handover()
    walk(plan, "drain", blocks(["a", "b"], 1, 2), blocks(["c"], 3))
    offer = plan.next_offer(0, "a")
    plan.gone(key(1))
    plan.gone(key(3))
    plan.gone(key(9))
    assert offer is not None and plan.answered(offer, bytes([REFUSED, HELD]), 0) == []
    assert plan.refused == 0
    assert said(plan) == {("b", "drain"): [2]}
    assert sums(plan) == (1, 0, 1, False)


def test_a_line_is_bounded_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "QUEUE_MAX", 3)
    plan = Handover()
    for number in range(5):
        plan.filled(key(number), SPACE, SIZE, [ME, "a"], ME)
    assert plan.queued == 3 and plan.overflowed == 2
    plan.filled(key(1), SPACE, SIZE, [ME, "a"], ME)
    assert plan.queued == 3 and plan.overflowed == 2, "it has its place already"
    walk(plan, "drain", blocks(["b"], *range(4)), blocks(["b", "c"], 4))
    assert plan.queued == 4 and plan.overflowed == 4
    answer_all(plan, HELD)
    assert sums(plan) == (5, 3, 2, False) and plan.needs_walk
    walk(plan, "drain", blocks(["b"], *range(4)), blocks(["b", "c"], 4))
    assert said(plan) == {("b", "drain"): [3, 4], ("c", "drain"): [4]}


def test_a_walk_can_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "QUEUE_MAX", 4)
    plan = Handover()
    plan.begin_walk("drain")
    for number in range(4):
        plan.filled(key(number), SPACE, SIZE, [ME, "a"], ME)
    assert plan.has_room(4), "replicas have lines of their own"
    number = 0
    while number < 20:
        while not plan.has_room(2):
            offer = plan.next_offer(0)
            assert offer is not None
            plan.answered(offer, bytes([HELD]) * len(offer.blocks), 0)
        plan.walk_slice(blocks(["a", "b"][number % 3 :][:1] or ["c"], number, number + 1), ME)
        number += 2
    plan.walk_ended()
    answer_all(plan, HELD)
    assert plan.overflowed == 0 and sums(plan) == (20, 20, 0, True)


def test_a_walk_replaces_the_one_before_and_late_answers_count_for_nothing() -> None:
    plan = Handover()
    plan.begin_walk("view")
    plan.walk_slice(blocks(["a"], 1), ME)
    late = plan.next_offer(0)
    assert late is not None
    plan.begin_walk("repair")
    plan.walk_slice(blocks(["b"], 1), ME)
    assert plan.answered(late, bytes([HELD]), 0) == []
    plan.failed(late, 0)
    assert said(plan) == {("b", "repair"): [1]}
    plan.begin_walk("view")
    plan.walk_slice(blocks(["a"], 1), ME)
    again = plan.next_offer(0)
    plan.answered(late, bytes([REFUSED]), 0)
    plan.failed(late, 0)
    assert plan.next_offer(0) is None, "one is under way"
    assert again is not None and plan.answered(again, bytes([HELD]), 0) != []


def test_what_a_walk_comes_past_twice_is_once() -> None:
    plan = Handover()
    plan.begin_walk("drain")
    plan.walk_slice(blocks(["a", "b"], 1, 2, 2), ME)
    assert plan.queued == 4 and sums(plan) == (2, 0, 2, False)
    answer_all(plan, HELD)
    plan.walk_slice(blocks(["a", "b"], 1), ME)
    plan.walk_ended()
    assert sums(plan) == (2, 2, 0, True)


def test_a_drain_is_done_when_its_walk_has_ended_and_all_owners_hold_all() -> None:
    plan = Handover()
    assert not plan.is_done and not plan.needs_walk
    plan.begin_walk("drain")
    assert sums(plan) == (0, 0, 0, False)
    plan.walk_slice(blocks(["a", "b"], 1, 2), ME)
    first, second = offers(plan)
    plan.answered(first, bytes([HELD, HELD]), 0)
    assert sums(plan) == (2, 0, 2, False), "one of two owners"
    plan.answered(second, bytes([HELD, QUEUED]), 0)
    assert sums(plan) == (2, 1, 1, False)
    assert answer_all(plan, HELD, handover.ASK_AGAIN_NS) == [Complete(key(2), "drain", 2, False)]
    assert sums(plan) == (2, 2, 0, False), "more may come"
    plan.walk_ended()
    assert sums(plan) == (2, 2, 0, True) and plan.is_done and not plan.needs_walk


def test_a_drain_with_nothing_to_hand_over_is_done_at_once() -> None:
    plan = Handover()
    walk(plan, "drain")
    assert plan.is_done
    walk(plan, "drain", blocks([], 1), blocks([ME], 2))
    assert plan.is_done and plan.progress()["ownerless_blocks"] == 2 and sums(plan) == (0, 0, 0, True)


def test_a_drain_that_was_refused_needs_another_walk() -> None:
    plan = Handover()
    walk(plan, "drain", blocks(["a"], 1, 2))
    assert not plan.needs_walk, "offers are to be made"
    (offer,) = offers(plan)
    assert not plan.needs_walk
    plan.answered(offer, bytes([HELD, REFUSED]), 0)
    assert plan.needs_walk and sums(plan) == (2, 1, 1, False) and plan.progress()["refused"] == 1
    plan.begin_walk("drain")
    assert not plan.needs_walk and plan.progress()["refused"] == 0
    assert sums(plan)[1] == 1, "what was handed over stays so"
    plan.walk_slice(blocks(["a"], 1, 2), ME)
    plan.walk_ended()
    assert said(plan) == {("a", "drain"): [2]}, "and is not offered again"


def test_a_drain_goes_on_in_another_view() -> None:
    plan = Handover()
    walk(plan, "drain", blocks(["a", "b"], 1, 2, 3, 4), blocks(["c"], 5))
    answer_all(plan, HELD)
    assert sums(plan) == (5, 5, 0, True)
    plan.begin_walk("drain")
    assert sums(plan) == (5, 5, 0, False)
    plan.walk_slice(blocks(["b", "a"], 1), ME)
    plan.walk_slice(blocks(["b"], 2), ME)
    assert sums(plan) == (5, 5, 0, False), "the same owners or fewer"
    plan.walk_slice(blocks(["c", "a"], 3), ME)
    assert sums(plan) == (5, 4, 1, False), "one has a new owner"
    plan.walk_ended()
    assert sums(plan) == (3, 2, 1, False), "two have left the node"
    assert said(plan) == {("c", "drain"): [3]}, "only the new owner is to be asked"
