"""DRAM segments: the node writes, readers map read-only, and the seals hold against everybody."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from shoal_core.errors import ConfigError, NoSpace
from shoal_node.tiers.dram import SEALS, DramSegment, huge_pages_configured

SIZE = 4 << 20


@pytest.fixture
def segment() -> Iterator[DramSegment]:
    made = DramSegment(SIZE, "tenant", "never")
    yield made
    made.close()


def test_a_reader_sees_what_the_node_writes(segment: DramSegment) -> None:
    with mmap.mmap(segment.descriptor, SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as reader:
        segment.memory[100:105] = b"bytes"
        assert reader[100:105] == b"bytes"
        assert reader[:100] == bytes(100)


def test_it_is_all_there_from_the_start(segment: DramSegment) -> None:
    """A page that could not be had later would be SIGBUS."""
    assert os.fstat(segment.descriptor).st_blocks * 512 >= SIZE


def test_the_seals_hold(segment: DramSegment) -> None:
    assert fcntl.fcntl(segment.descriptor, fcntl.F_GET_SEALS) == SEALS
    given = os.dup(segment.descriptor)
    try:
        for size in (0, SIZE - 1, SIZE + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(given, size)
        with pytest.raises(PermissionError):
            os.pwrite(given, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(given, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(given, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with pytest.raises((OSError, PermissionError)):
            os.posix_fallocate(given, 0, SIZE * 2)
    finally:
        os.close(given)
    segment.memory[:4] = b"node"


def test_readers_keep_what_they_mapped_when_the_node_ends(segment: DramSegment) -> None:
    segment.memory[:4] = b"last"
    with mmap.mmap(segment.descriptor, SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as reader:
        segment.close()
        segment.close()
        assert reader[:4] == b"last"


def test_closing_while_a_send_still_looks_at_it(segment: DramSegment) -> None:
    view = segment.memory[10:20]
    segment.memory[10:20] = b"0123456789"
    segment.close()
    assert bytes(view) == b"0123456789"
    view.release()


def test_memory_that_cannot_be_had_is_said_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "as the kernel says it")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(NoSpace, match="cannot have"):
        DramSegment(SIZE, "tenant", "never")
    assert len(os.listdir("/proc/self/fd")) == before


def test_huge_pages_that_are_required_and_not_there() -> None:
    if huge_pages_configured():
        DramSegment(SIZE, "tenant", "require").close()
    else:
        with pytest.raises(ConfigError, match=r"dram\.huge_pages"):
            DramSegment(SIZE, "tenant", "require")


def test_huge_pages_where_there_are_any() -> None:
    made = DramSegment(SIZE, "tenant", "auto")
    assert made.huge == (huge_pages_configured() and made.huge)
    made.memory[:1] = b"x"
    made.close()
