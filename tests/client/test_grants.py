"""Grants by themselves, over a real segment: what may be used, what goes back, and when."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

from shoal.grants import Grant, Grants
from shoal_core.errors import ProtocolError
from shoal_core.verbs import get
from shoal_transport.mapping import Mapping

SIZE = 1 << 20
BLOCK = 1000


class Holder:
    """What stands for the events connection."""


@pytest.fixture
def holder() -> Holder:
    return Holder()


@pytest.fixture
def mapping() -> Mapping:
    descriptor = os.memfd_create("grants")
    os.write(descriptor, os.urandom(SIZE))
    return Mapping(descriptor, SIZE)


@pytest.fixture
def grants(holder: Holder) -> Grants:
    made = Grants()
    made.attach(holder, 5 * BLOCK)
    return made


@pytest.fixture
def granted(grants: Grants, mapping: Mapping, holder: Holder) -> Any:
    """granted(number, lease=1, entry=None) -> what `add` says of a new grant of block `number`."""

    def make(number: int, lease: int = 1, entry: int | None = None, by: object = holder) -> Grant | None:
        place = number if entry is None else entry
        answer = get.Grant(0, 0, number * BLOCK, BLOCK, place, 7, lease)
        return grants.add(Grant((bytes(16), number), answer, mapping, by))

    return make


def key(number: int) -> tuple[bytes, int]:
    return bytes(16), number


def test_a_grant_shows_its_block_and_nothing_else(granted: Any, mapping: Mapping) -> None:
    grant = granted(3)
    view = grant.view()
    assert view == mapping.memory[3 * BLOCK : 4 * BLOCK] == grant.memory
    assert view.readonly and view.format == "B" and view.nbytes == BLOCK
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_grant_outside_its_segment_is_none(mapping: Mapping, holder: Holder) -> None:
    for offset in (SIZE - BLOCK + 1, SIZE, -1, 1 << 40):
        with pytest.raises(ProtocolError, match="outside"):
            Grant(key(0), get.Grant(0, 0, offset, BLOCK, 0, 0, 1), mapping, holder)
    Grant(key(0), get.Grant(0, 0, SIZE - BLOCK, BLOCK, 0, 0, 1), mapping, holder).view()
    for offset, size in ((-1, 5), (0, -1), (0, SIZE + 1)):
        with pytest.raises(ProtocolError):
            mapping.exporter(offset, size)


def test_it_lives_as_long_as_anything_made_from_its_view(granted: Any, holder: Holder) -> None:
    np = pytest.importorskip("numpy")
    grant = granted(0)
    assert not grant.live
    view = grant.view()
    part = view[10:20][2:4]
    array = np.frombuffer(part, dtype=np.uint8)
    del view, part
    gc.collect()
    assert grant.live and array.tobytes() == bytes(grant.memory[12:14])
    other = grant.view()
    del array
    assert grant.live
    del other
    assert not grant.live


def test_views_keep_the_connection_that_their_lease_hangs_on(grants: Grants, granted: Any) -> None:
    import weakref

    class Watched(Holder):
        pass

    holder = Watched()
    grants.attach(holder, 5 * BLOCK)
    watched = weakref.ref(holder)
    view = granted(0, by=holder).view()
    grants.forget_all()
    del holder
    gc.collect()
    assert watched() is not None
    part = view[:1]
    del view
    gc.collect()
    assert watched() is not None
    del part
    gc.collect()
    assert watched() is None


def test_idle_ones_go_back_oldest_first_and_touched_ones_later(grants: Grants, granted: Any) -> None:
    made = [granted(number, lease=number + 1) for number in range(5)]
    grants.make_room(0)
    assert len(grants.by_key) == 5, "they fit"
    grants.touch(made[0])
    view = made[1].view()
    grants.make_room(2 * BLOCK)
    assert set(grants.by_key) == {key(0), key(1), key(4)}
    released, touches = grants.report()
    assert released == [(2, 3), (3, 4)]
    assert touches == [(0, 7, 1)]
    assert grants.report() == ([], []), "told once"
    assert grants.leased_bytes == 3 * BLOCK
    del view


def test_all_in_use_is_no_endless_search(grants: Grants, granted: Any) -> None:
    views = [granted(number).view() for number in range(5)]
    grants.make_room(BLOCK)
    assert len(grants.by_key) == 5 and views


def test_asked_back(grants: Grants, granted: Any) -> None:
    granted(0, lease=1)
    view = granted(1, lease=2).view()
    released, busy = grants.revoke([(0, 1), (1, 2), (9, 3)])
    assert (released, busy) == ([(0, 1), (9, 3)], [(1, 2)])
    assert grants.by_key.keys() == {key(1)}
    assert grants.report() == ([], [])
    assert not grants.to_report
    for _ in range(100):
        grants.revoke([(1, 2)])
    assert len(grants._asked) == 1, "asked for again and again, it is noted once"
    del view
    assert grants.to_report
    assert grants.report()[0] == [(1, 2)]
    assert not grants.by_key and grants.leased_bytes == 0


def test_what_was_given_back_while_it_was_under_way_is_dead(grants: Grants, granted: Any) -> None:
    number = grants.begin_get()
    assert grants.revoke([(0, 5)]) == ([(0, 5)], [])
    assert granted(0, lease=4) is None and granted(0, lease=5) is None
    assert granted(0, lease=6) is not None, "granted after that"
    grants.end_get(number)
    assert grants.revoke([(0, 6)]) == ([(0, 6)], [])
    assert granted(0, lease=7) is not None


def test_what_was_given_back_before_a_request_cannot_come_with_it(grants: Grants, granted: Any) -> None:
    granted(0, lease=3)
    grants.forget_key(key(0))
    assert grants.report()[0] == [(0, 3)]
    number = grants.begin_get()
    assert granted(0, lease=4) is not None
    grants.end_get(number)


def test_the_memory_of_numbers_given_back_is_bounded(grants: Grants) -> None:
    """Also if there is never a moment without a request under way."""
    previous = grants.begin_get()
    for entry in range(5000):
        following = grants.begin_get()
        grants.revoke([(entry, entry + 1)])
        grants.end_get(previous)
        previous = following
    assert len(grants._given_back) < 1000
    grants.end_get(previous)
    assert not grants._given_back


def test_two_grants_of_one_block_are_one_lease_with_the_later_number(grants: Grants, granted: Any) -> None:
    first = granted(0, lease=5)
    assert granted(0, lease=6) is first and granted(0, lease=2) is first
    assert grants.leased_bytes == BLOCK
    grants.forget_key(key(0))
    assert grants.report()[0] == [(0, 6)]


def test_a_block_that_lies_elsewhere_now_displaces_the_old_place(grants: Grants, granted: Any) -> None:
    """Evicted and filled again; the view of the old place keeps its lease."""
    old = granted(0, lease=1, entry=3)
    view = old.view()
    new = granted(0, lease=2, entry=4)
    assert grants.by_key[key(0)] is new and grants.leased_bytes == 2 * BLOCK
    assert grants.report()[0] == []
    del view
    assert grants.report()[0] == [(3, 1)]
    assert grants.by_key[key(0)] is new and grants.leased_bytes == BLOCK


def test_after_the_end_nothing_is_taken_in(grants: Grants, granted: Any, holder: Holder) -> None:
    granted(0)
    grants.forget_all()
    assert granted(1) is None
    assert (grants.by_key, grants.leased_bytes, grants.report()) == ({}, 0, ([], []))
    other = Holder()
    grants.attach(other, 10)
    assert granted(1) is None, "a late grant of the former node"
    assert granted(1, by=other) is not None


def test_what_the_node_asks_back_leaves_nothing_behind(grants: Grants, granted: Any) -> None:
    """A node smaller than what its client may hold asks back all the time, and the client never looks for room."""
    for lease in range(1, 5001):
        assert granted(lease % 3, lease) is not None
        grants.revoke([(lease % 3, lease)])
    assert len(grants._order) < 600 and not grants.by_key and not grants.leased_bytes
