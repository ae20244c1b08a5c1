"""View and placement: fair shares, fair moves, spreading, and values that no version may change."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import placement, view
from shoal_core.errors import ConfigError

TIB = 1 << 40
SOME = range(0, placement.PARTITION_COUNT, 32)
"""2,048 of the partitions."""


def nodes(count: int, **fields: object) -> list[view.Node]:
    return [view.Node(id=f"node-{number:03}", addresses=(), capacity_bytes=TIB, **fields) for number in range(count)]  # type: ignore[arg-type]


def racks(zones: int, racks_each: int, nodes_each: int) -> list[view.Node]:
    return [
        view.Node(id=f"n-{zone}-{rack}-{node}", addresses=(), capacity_bytes=TIB, zone=f"z{zone}", rack=f"r{rack}")
        for zone in range(zones)
        for rack in range(racks_each)
        for node in range(nodes_each)
    ]


def owner_ids(members: list[view.Node], replica_count: int = 1) -> list[tuple[str, ...]]:
    of = view.make(1, members)
    table = placement.Placement(of, replica_count)
    return [tuple(of.nodes[place].id for place in table.owners(partition)) for partition in SOME]


# View


def test_a_view_is_sorted_and_knows_positions():
    of = view.make(3, list(reversed(nodes(3))))
    assert [node.id for node in of.nodes] == ["node-000", "node-001", "node-002"]
    assert of.position("node-001") == 1
    assert of.position("node-009") is None


def test_views_that_cannot_be():
    with pytest.raises(ConfigError, match="epoch: -1 is negative"):
        view.make(-1, [])
    with pytest.raises(ConfigError, match="node-000 is there twice"):
        view.make(1, nodes(1) + nodes(1))
    with pytest.raises(ConfigError, match="has no id"):
        view.make(1, [view.Node(id="", addresses=(), capacity_bytes=1)])
    with pytest.raises(ConfigError, match=r"nodes\.a\.capacity_bytes: -5 is negative"):
        view.make(1, [view.Node(id="a", addresses=(), capacity_bytes=-5)])


def test_the_later_epoch_counts():
    first, second = view.make(1, []), view.make(2, [])
    assert view.newer(None, first) is first
    assert view.newer(first, second) is second
    assert view.newer(second, first) is second
    assert view.newer(first, view.make(1, nodes(1))) is first


# Partitions


def test_the_partition_of_a_key_never_changes():
    assert [placement.partition(bytes(16)), placement.partition(bytes(range(16)))] == [35176, 28891]


def test_keys_spread_evenly_over_partitions():
    counts = Counter(placement.partition(number.to_bytes(16, "little")) >> 8 for number in range(50_000))
    assert len(counts) == 256
    assert max(counts.values()) < 1.5 * 50_000 / 256


# Owners


def test_owners_of_these_views_never_change():
    """All versions of all nodes and clients must agree."""
    table = placement.Placement(view.make(1, racks(3, 2, 2)), 3)
    assert [table.owners(partition) for partition in (0, 1, 65_535)] == [(0, 4, 11), (5, 2, 11), (7, 9, 3)]


def test_owners_of_a_key_are_those_of_its_partition():
    table = placement.Placement(view.make(1, nodes(5)), 2)
    key = b"sixteen bytes ok"
    assert table.owners_of(key) == table.owners(placement.partition(key))
    assert table.owners_of(key) == table.owners_of(key)


def test_ownership_is_in_proportion_to_capacity():
    members = [view.Node(id=f"n{size}", addresses=(), capacity_bytes=size * TIB) for size in (1, 2, 3, 10)]
    counts = Counter(owners[0] for owners in owner_ids(members))
    for size in (1, 2, 3, 10):
        share = len(SOME) * size / 16
        assert abs(counts[f"n{size}"] - share) < 4 * share**0.5


@settings(max_examples=20, deadline=None)
@given(
    capacities=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    newcomer=st.integers(1, 20),
    zones=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_a_change_of_membership_moves_its_fair_share(capacities: list[int], newcomer: int, zones: int, seed: int):
    rng = random.Random(seed)
    before = [
        view.Node(id=f"{seed}-{number}", addresses=(), capacity_bytes=size, zone=f"z{rng.randrange(zones)}")
        for number, size in enumerate(capacities)
    ]
    new = view.Node(id=f"{seed}-new", addresses=(), capacity_bytes=newcomer, zone="z0")
    old_owners, new_owners = owner_ids(before), owner_ids([*before, new])
    moved = [pair for pair in zip(old_owners, new_owners, strict=True) if pair[0] != pair[1]]
    assert all(after == (new.id,) for _, after in moved)
    share = len(SOME) * newcomer / (sum(capacities) + newcomer)
    assert abs(len(moved) - share) < 5 * share**0.5 + 5


def test_with_replicas_a_change_moves_little_more_than_its_share():
    before = racks(3, 2, 3)
    new = view.Node(id="new", addresses=(), capacity_bytes=TIB, zone="z1", rack="r0")
    moved = sum(
        len(set(after) - set(owners))
        for owners, after in zip(owner_ids(before, 3), owner_ids([*before, new], 3), strict=True)
    )
    share = 3 * len(SOME) / 19
    assert 0.7 * share < moved < 1.5 * share


def test_a_change_of_one_capacity_moves_nothing_between_others():
    before = nodes(6)
    after = [*before[:5], view.Node(id="node-005", addresses=(), capacity_bytes=2 * TIB)]
    for (old,), (new,) in zip(owner_ids(before), owner_ids(after), strict=True):
        assert old == new or new == "node-005"


def test_replicas_are_spread_over_zones_then_racks_then_nodes():
    for owners in owner_ids(racks(3, 2, 2), 3):
        assert len({owner.split("-")[1] for owner in owners}) == 3
    for owners in owner_ids(racks(1, 3, 2), 3):
        assert len({owner.split("-")[2] for owner in owners}) == 3
    for owners in owner_ids(racks(2, 2, 1), 4):
        assert owners[0].split("-")[1] != owners[1].split("-")[1]
        assert len(set(owners)) == 4
    for owners in owner_ids(racks(1, 1, 4), 3):
        assert len(set(owners)) == 3
    for owners in owner_ids(nodes(4), 3):
        assert len(set(owners)) == 3


def test_more_replicas_only_add_owners():
    members = racks(2, 3, 2)
    for fewer, more in zip(owner_ids(members, 2), owner_ids(members, 5), strict=True):
        assert more[:2] == fewer


def test_there_are_no_more_owners_than_nodes_that_may_own():
    assert set(owner_ids(nodes(2), 3)[0]) == {"node-000", "node-001"}
    members = [
        *nodes(1),
        view.Node(id="draining", addresses=(), capacity_bytes=TIB, status="draining"),
        view.Node(id="gone", addresses=(), capacity_bytes=TIB, status="gone"),
        view.Node(id="empty", addresses=(), capacity_bytes=0),
    ]
    assert set(owner_ids(members, 3)) == {("node-000",)}
    assert set(owner_ids([], 2)) == {()}


def test_impossible_replica_counts():
    for count in (0, view.REPLICA_COUNT_MAX + 1):
        with pytest.raises(ValueError, match="replicas"):
            placement.Placement(view.make(1, []), count)
