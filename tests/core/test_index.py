"""The index against a dict, under long random turnover."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_core import index, limits
from shoal_core.errors import InvariantBroken


def key_of(number: int, crowded: bool = False) -> bytes:
    # Crowded keys share their low bits, so that runs in the table are long and wrap around.
    low = (number << 32 | 1020) if crowded else number * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return low.to_bytes(8, "little") + number.to_bytes(8, "little")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_index_behaves_as_a_dict(seed: int, crowded: bool) -> None:
    chance = random.Random(seed)
    table, model = index.Index(), dict[int, int]()
    for _ in range(600):
        number = chance.randrange(150)
        key = key_of(number, crowded)
        assert table.find(key) == model.get(number, index.NONE)
        if number in model:
            entry = model.pop(number)
            table.unlink(entry)
            table.recycle(entry)
        else:
            entry = model[number] = table.add(key, space=3, size=number)
            assert table.key(entry) == key and table.size[entry] == number
    assert len(table) == len(model)
    for number, entry in model.items():
        assert table.find(key_of(number, crowded)) == entry


def test_growth_keeps_every_entry_and_stays_small() -> None:
    table = index.Index()
    entries = [table.add(key_of(number), 0, 1) for number in range(20_000)]
    assert [table.find(key_of(number)) for number in range(20_000)] == entries
    assert table.memory_bytes / table.capacity < limits.INDEX_ENTRY_BYTES * 0.65


def test_generation_tells_a_recycled_entry_from_the_old_one() -> None:
    table = index.Index()
    entry = table.add(key_of(1), 0, 1)
    before = table.generation[entry]
    table.unlink(entry)
    assert table.find(key_of(1)) == index.NONE
    table.recycle(entry)
    again = table.add(key_of(2), 0, 1)
    assert again == entry and table.generation[entry] != before


def test_unlinking_twice_is_a_bug_that_is_seen() -> None:
    table = index.Index()
    entry = table.add(key_of(1), 0, 1)
    table.unlink(entry)
    with pytest.raises(InvariantBroken):
        table.unlink(entry)
