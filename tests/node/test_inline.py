"""What travels for a range: whole pages with the fill's digests, or the range alone once the node has checked it."""

import random

import pytest

from shoal_core import digests
from shoal_core.limits import DIGEST_BYTES, KIB, PAGE_BYTES
from shoal_core.verbs import get
from shoal_node import inline
from shoal_node.inline import HeldBlock

SIZE = 3 * PAGE_BYTES + 1000
DATA = random.Random(3).randbytes(SIZE)


def block(data: bytes = DATA) -> HeldBlock:
    return HeldBlock(7, 2, get.SOURCE_DRAM, memoryview(data), digests.page_digests(memoryview(DATA)))


@pytest.mark.parametrize(
    ("offset", "length", "sent"),
    [
        (0, SIZE, (0, SIZE)),
        (0, PAGE_BYTES, (0, PAGE_BYTES)),
        (0, PAGE_BYTES // 2, (0, PAGE_BYTES)),
        (0, PAGE_BYTES // 2 - 1, (0, PAGE_BYTES // 2 - 1)),
        (PAGE_BYTES - 1, 2, (PAGE_BYTES - 1, 2)),
        (5, 2 * PAGE_BYTES, (0, 3 * PAGE_BYTES)),
        (3 * PAGE_BYTES, 1000, (3 * PAGE_BYTES, 1000)),
        (SIZE - 1, 1, (SIZE - 1, 1)),
    ],
)
def test_what_is_sent_covers_the_range_and_has_its_digests(offset: int, length: int, sent: tuple[int, int]) -> None:
    answer, view = inline.answer(get.Item(0, 0, offset, length), block(), set())
    assert (answer.offset, answer.length) == sent
    assert bytes(view) == DATA[answer.offset : answer.offset + answer.length]
    assert digests.matches(view, answer.digests)


def test_a_damaged_page_travels_whole_so_that_its_reader_finds_out() -> None:
    damaged = bytearray(DATA)
    damaged[PAGE_BYTES + 9] ^= 1
    answer, view = inline.answer(get.Item(0, 0, PAGE_BYTES + 4 * KIB, 4 * KIB), block(bytes(damaged)), set())
    assert (answer.offset, answer.length) == (PAGE_BYTES, PAGE_BYTES)
    assert not digests.matches(view, answer.digests)
    assert answer.digests == digests.page_digests(memoryview(DATA))[DIGEST_BYTES : 2 * DIGEST_BYTES]


def test_a_page_is_checked_once_a_batch() -> None:
    checked: set[tuple[int, int]] = set()
    inline.answer(get.Item(0, 0, 100, 10), block(), checked)
    assert checked == {(7, 0)}
    inline.answer(get.Item(0, 0, PAGE_BYTES - 5, 10), block(), checked)
    assert checked == {(7, 0), (7, PAGE_BYTES)}
