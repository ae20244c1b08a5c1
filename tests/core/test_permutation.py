"""Keyed permutations and the orders made of them."""

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import permutation
from shoal_core.errors import BadRequest
from shoal_core.order import Blocks, Sequential, Shuffled

# Permutations.


@given(st.integers(1, 700), st.binary(max_size=8))
def test_it_is_a_permutation_and_its_inverse(size: int, name: bytes) -> None:
    keys = permutation.round_keys(name)
    items = [permutation.forward(position, size, keys) for position in range(size)]
    assert sorted(items) == list(range(size))
    assert [permutation.backward(item, size, keys) for item in items] == list(range(size))


@given(st.integers(1, 2**62), st.integers(0, 2**62), st.binary(max_size=8))
def test_large_sizes(size: int, position: int, name: bytes) -> None:
    keys = permutation.round_keys(name)
    item = permutation.forward(position % size, size, keys)
    assert 0 <= item < size
    assert permutation.backward(item, size, keys) == position % size


@given(st.integers(1, 2**40), st.binary(max_size=8), st.data())
def test_tensors_give_the_same_as_numbers(size: int, name: bytes, data: Any) -> None:
    torch = pytest.importorskip("torch")
    keys = permutation.round_keys(name)
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40))
    items = permutation.forward(torch.tensor(positions), size, keys)
    assert items.tolist() == [permutation.forward(position, size, keys) for position in positions]
    assert permutation.backward(items, size, keys).tolist() == positions


def test_keys_tell_names_apart() -> None:
    assert permutation.round_keys(b"ab", b"c") != permutation.round_keys(b"a", b"bc")
    assert permutation.round_keys(b"ab") == permutation.round_keys(b"ab")


def chi_square(seen: Counter[Any], kinds: int, total: int) -> float:
    expected = total / kinds
    return sum((seen[kind] - expected) ** 2 / expected for kind in seen) + expected * (kinds - len(seen))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_small_sizes_show_every_order_alike(size: int) -> None:
    """Chi-square over all orders; the bound is some five standard deviations above its mean."""
    orders = len(list(itertools.permutations(range(size))))
    total = 25 * orders if size > 4 else 3000
    seen: Counter[tuple[int, ...]] = Counter()
    for number in range(total):
        keys = permutation.round_keys(b"chi", number.to_bytes(4, "little"))
        seen[tuple(permutation.forward(position, size, keys) for position in range(size))] += 1
    freedom = orders - 1
    assert chi_square(seen, orders, total) < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_places_and_neighbours_of_a_larger_order_are_as_chance_has_them() -> None:
    """Where item 7 of 97 comes, and what follows it: each value alike."""
    size, total = 97, 97 * 30
    places: Counter[int] = Counter()
    followers: Counter[int] = Counter()
    for number in range(total):
        keys = permutation.round_keys(b"places", number.to_bytes(4, "little"))
        place = permutation.backward(7, size, keys)
        places[place] += 1
        followers[permutation.forward((place + 1) % size, size, keys)] += 1
    assert chi_square(places, size, total) < 96 + 5 * (2 * 96) ** 0.5
    assert set(followers) == set(range(size)) - {7}
    assert chi_square(followers, size - 1, total) < 95 + 5 * (2 * 95) ** 0.5


def test_epochs_have_little_in_common() -> None:
    size = 1000
    first, second = (permutation.round_keys(b"epoch", bytes([number])) for number in (0, 1))
    both = [(permutation.forward(p, size, first), permutation.forward(p, size, second)) for p in range(size)]
    assert sum(a == b for a, b in both) < 10  # one on average
    differences = Counter((b - a) % size for a, b in both)
    assert max(differences.values()) < 10


# Orders.


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 6), st.binary(max_size=4))
def test_blocks_are_a_permutation_and_its_inverse(count: int, block: int, window: int, name: bytes) -> None:
    order = Blocks(count, name, block, window)
    items = [order.items(position) for position in range(count)]
    assert sorted(items) == list(range(count))
    assert [order.positions(item) for item in items] == list(range(count))


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 6), st.binary(max_size=4))
@settings(deadline=None)
def test_orders_of_tensors_are_those_of_numbers(count: int, block: int, window: int, name: bytes) -> None:
    torch = pytest.importorskip("torch")
    for order in (Sequential(count), Shuffled(count, name), Blocks(count, name, block, window)):
        every = torch.arange(count)
        items = order.items(every)
        assert items.tolist() == [order.items(position) for position in range(count)]
        assert order.positions(items).tolist() == every.tolist()


@given(st.integers(1, 2000), st.integers(1, 50), st.integers(1, 6), st.binary(max_size=4))
def test_a_window_touches_few_blocks(count: int, block: int, window: int, name: bytes) -> None:
    """So many samples in a row come from two windows' blocks, and perhaps the short one, at most."""
    order = Blocks(count, name, block, window)
    items = [order.items(position) for position in range(count)]
    for start in range(0, count, block * window):
        assert len({item // block for item in items[start : start + block * window]}) <= 2 * window + 1


def test_blocks_are_shuffled_and_so_are_their_items() -> None:
    order = Blocks(10_000, b"x", 100, 4)
    items = [order.items(position) for position in range(10_000)]
    blocks = [item // 100 for item in items[::400]]
    assert blocks != sorted(blocks)
    assert sum(b == a + 1 for a, b in itertools.pairwise(items)) < 200  # 10,000 / 400 by chance
    assert len({item // 100 for item in items[:20]}) > 1


def test_where_the_short_block_stands_is_drawn() -> None:
    places = {Blocks(1003, bytes([name]), 100, 3).positions(1002) // 100 for name in range(60)}
    assert len(places) > 5


@pytest.mark.parametrize(("field", "arguments"), [("block", (0, 1)), ("window", (1, 0))])
def test_no_items_in_a_block_is_an_error(field: str, arguments: tuple[int, int]) -> None:
    with pytest.raises(BadRequest, match=field):
        Blocks(10, b"", *arguments)


def test_sequential_is_what_it_says() -> None:
    order = Sequential(5)
    assert [order.items(position) for position in range(order.count)] == [0, 1, 2, 3, 4]
    assert order.positions(3) == 3
