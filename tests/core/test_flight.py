"""Single flight: one leads, all are woken, nobody is stranded whoever leaves."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoal_core.errors import InvariantBroken
from shoal_core.flight import Flights


def test_one_leads_and_all_learn_the_outcome():
    flights: Flights[str, int] = Flights()
    assert flights.join("block", 1) is True
    assert flights.join("block", 2) is False
    assert flights.join("other", 3) is True
    assert len(flights) == 2
    assert "block" in flights
    assert flights.leader("block") == 1
    assert flights.finish("block", 1) == [1, 2]
    assert "block" not in flights
    assert flights.leader("block") is None
    assert flights.finish("block", 1) == []
    assert flights.join("block", 4) is True


def test_a_leader_that_leaves_hands_over_to_the_longest_waiting():
    flights: Flights[str, int] = Flights()
    for waiter in (1, 2, 3):
        flights.join("block", waiter)
    assert flights.leave("block", 1) == 2
    assert flights.finish("block", 1) == []
    assert flights.leave("block", 3) is None
    assert flights.finish("block", 2) == [2]


def test_when_the_last_one_leaves_the_flight_has_ended():
    flights: Flights[str, int] = Flights()
    flights.join("block", 1)
    assert flights.leave("block", 1) is None
    assert len(flights) == 0
    assert flights.leave("block", 1) is None
    assert flights.join("block", 2) is True
    assert flights.leave("block", 1) is None
    assert flights.leader("block") == 2


def test_joining_twice_is_a_bug():
    flights: Flights[str, int] = Flights()
    flights.join("block", 1)
    with pytest.raises(InvariantBroken, match="twice"):
        flights.join("block", 1)


class NobodyIsStranded(RuleBasedStateMachine):
    """Whoever waits, waits for a leader that was told to lead; every finish wakes all who wait."""

    def __init__(self) -> None:
        super().__init__()
        self.flights: Flights[int, int] = Flights()
        self.waiting: dict[int, set[int]] = {}
        self.told_to_lead: dict[int, int] = {}

    keys = st.integers(0, 2)
    waiters = st.integers(0, 5)

    @rule(key=keys, waiter=waiters)
    def join(self, key: int, waiter: int) -> None:
        if waiter not in self.waiting.get(key, ()):
            leads = self.flights.join(key, waiter)
            assert leads == (key not in self.waiting)
            self.waiting.setdefault(key, set()).add(waiter)
            if leads:
                self.told_to_lead[key] = waiter

    @rule(key=keys, waiter=waiters)
    def leave(self, key: int, waiter: int) -> None:
        heir = self.flights.leave(key, waiter)
        if heir is not None:
            assert self.told_to_lead[key] == waiter
            self.told_to_lead[key] = heir
        if waiter in self.waiting.get(key, ()):
            self.waiting[key].discard(waiter)
            if not self.waiting[key]:
                del self.waiting[key], self.told_to_lead[key]

    @rule(key=keys, waiter=waiters)
    def finish(self, key: int, waiter: int) -> None:
        woken = self.flights.finish(key, waiter)
        if self.told_to_lead.get(key) == waiter:
            assert woken[0] == waiter
            assert set(woken) == self.waiting.pop(key)
            del self.told_to_lead[key]
        else:
            assert woken == []

    @invariant()
    def every_flight_has_a_leader_who_knows_it(self) -> None:
        assert len(self.flights) == len(self.waiting)
        for key, waiting in self.waiting.items():
            assert self.flights.leader(key) == self.told_to_lead[key]
            assert self.told_to_lead[key] in waiting


TestNobodyIsStranded = NobodyIsStranded.TestCase
TestNobodyIsStranded.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
