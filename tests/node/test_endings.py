"""Endings: the last reason for each key, in a table that never grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_node import endings
from shoal_node.endings import Endings

KEYS = st.builds(
    lambda row, rest, tail: (rest * endings.ROWS + row).to_bytes(8, "little") + tail.to_bytes(8, "little"),
    st.integers(0, 3),
    st.sampled_from([0, 1, 2**48 - 1]),
    st.integers(0, 1),
)
NOTES = st.tuples(KEYS, st.sampled_from(endings.REASONS), st.integers(0, 2**32 - 1))


def test_a_key_that_nothing_was_noted_of() -> None:
    table = Endings()
    assert table.why(bytes(16)) is None
    assert table.why(b"\xff" * 16) is None


@pytest.mark.parametrize("reason", endings.REASONS)
def test_each_reason_comes_back(reason: str) -> None:
    table = Endings()
    table.note(bytes(16), reason, 1_800_000_000)
    assert table.why(bytes(16)) == (reason, 1_800_000_000)
    assert table.why(b"\x01" + bytes(15)) is None


def test_whole_seconds() -> None:
    table = Endings()
    table.note(bytes(16), "late", 12.9)
    assert table.why(bytes(16)) == ("late", 12)


def test_a_reason_that_there_is_not() -> None:
    table = Endings()
    with pytest.raises(KeyError):
        table.note(bytes(16), "bored", 1)
    assert table.why(bytes(16)) is None, "a row is written as a whole or not at all"


def test_memory_is_fixed() -> None:
    table = Endings()
    before = table.memory_bytes
    assert before < 1 << 20
    for number in range(3 * endings.ROWS):
        table.note((number * 0x9E3779B97F4A7C15 % 2**128).to_bytes(16, "big"), "evicted", number)
    assert table.memory_bytes == before


@given(st.lists(NOTES), KEYS)
def test_the_last_note_of_a_row_is_what_is_known(notes: list[tuple[bytes, str, int]], asked: bytes) -> None:
    table = Endings()
    rows: dict[bytes, tuple[bytes, str, int]] = {}
    for key, reason, now_s in notes:
        table.note(key, reason, now_s)
        rows[key[:2]] = key[:8], reason, now_s
    for key in {asked, *(key for key, _, _ in notes)}:
        known = rows.get(key[:2])
        assert table.why(key) == (known[1:] if known is not None and known[0] == key[:8] else None)
