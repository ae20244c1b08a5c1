"""A range is cut at the blocks' borders and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal import pieces
from shoal.objects import ObjectInfo


def info(size: int, block_size: int) -> ObjectInfo:
    return ObjectInfo("file:///x", size, "etag", bytes(16), block_size, "file:///x")


@given(st.integers(1, 50), st.integers(0, 300), st.data())
def test_pieces_cover_the_range_once_and_in_order(block_size: int, size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - offset))
    target = bytearray(length)
    found = list(pieces.split(info(size, block_size), offset, length, memoryview(target), 7))
    content = bytes(position % 251 for position in range(size))
    for piece in found:
        assert piece.offset >= 0 and piece.length > 0 and piece.offset + piece.length <= block_size
        assert piece.request == 7 and piece.key == (bytes(16), piece.block) and piece.target is not None
        piece.target[:] = content[piece.object_offset : piece.object_offset + piece.length]
    assert bytes(target) == content[offset : offset + length]
    assert [piece.block for piece in found] == sorted({piece.block for piece in found}), "one per block"


@given(st.integers(0, 300), st.integers(0, 400), st.none() | st.integers(0, 400))
def test_what_lies_beyond_the_end_is_not_there(size: int, offset: int, length: int | None) -> None:
    content = bytes(size)
    expected = content[offset:] if length is None else content[offset : offset + length]
    assert pieces.clip(info(size, 64), offset, length) == len(expected)


def test_a_piece_without_a_target_has_none() -> None:
    assert [piece.target for piece in pieces.split(info(10, 4), 1, 8, None, 0)] == [None, None, None]
