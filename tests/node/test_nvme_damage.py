"""The NVMe tier when description, tables, segment files or the disk are not in order."""

from __future__ import annotations

import collections
import errno
import json
import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shoal_core import digests
from shoal_node.tiers.nvme import FileIo
from tests.node.nvme_blocks import CLASSES, LARGE, SLAB, load, open_tier, recovered, slot, store

DAMAGES = {
    "garbage": b"\x00\xff garbage",
    "empty": b"",
    "another format": json.dumps({"format": 99, "slab_bytes": SLAB, "slabs_per_segment": 1024, "classes": CLASSES}),
    "other classes": json.dumps({"format": 1, "slab_bytes": SLAB, "slabs_per_segment": 1024, "classes": [4096]}),
    "unknown field": json.dumps({"format": 1, "slab_bytes": SLAB, "colour": "red"}),
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unusable_description_makes_the_tier_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    tier = open_tier(tmp_path)
    assert tier.remade_because == ""
    tier.assign(0, LARGE)
    store(tier, slot(0, 0), b"x")
    tier.close()
    (tmp_path / "keep.txt").write_text("not ours")
    content = DAMAGES[damage]
    if content is None:
        (tmp_path / "shoal.json").unlink()
    else:
        (tmp_path / "shoal.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with caplog.at_level(logging.WARNING):
        tier = open_tier(tmp_path)
    assert str(tmp_path) in caplog.text
    assert "starts empty" in caplog.text
    assert tier.remade_because
    assert recovered(tier) == ({}, {})
    tier.assign(0, LARGE)
    record = store(tier, slot(0, 0), b"fresh")
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered(tier) == ({0: LARGE}, {record.slot: record})
    assert (tmp_path / "keep.txt").read_text() == "not ours"
    tier.close()


def test_a_flipped_bit_in_a_table_costs_that_record_only(tmp_path: Path) -> None:
    """Every bit of one record, and of one slab's header."""
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    flipped, other = store(tier, slot(0, 0), b"a" * 5000, 7), store(tier, slot(0, 1), b"b" * 5000, 8)
    tier.close()
    table = tmp_path / "entries-0000"
    whole = table.read_bytes()
    for bit in range(64 * 8):
        for start, expected in ((64, ({0: LARGE}, {other.slot: other})), (0, ({}, {}))):
            damaged = bytearray(whole)
            damaged[start + bit // 8] ^= 1 << bit % 8
            table.write_bytes(damaged)
            tier = open_tier(tmp_path)
            assert recovered(tier) == expected, f"bit {bit} of the entry at {start}"
            tier.close()
    table.write_bytes(whole)
    tier = open_tier(tmp_path)
    assert recovered(tier) == ({0: LARGE}, {flipped.slot: flipped, other.slot: other})
    tier.close()


def test_a_truncated_table_costs_what_was_cut_off(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    records = [store(tier, slot(0, index), b"x" * 100, index) for index in range(4)]
    tier.close()
    for length in (64 + 64 * 3 + 63, 64 + 64, 64 + 10, 64, 63, 0):
        os.truncate(tmp_path / "entries-0000", length)
        tier = open_tier(tmp_path)
        kept = {record.slot: record for record in records[: max(0, length // 64 - 1)]}
        assert recovered(tier) == ({0: LARGE} if length >= 64 else {}, kept)
        tier.close()


def test_a_truncated_segment_costs_the_slabs_that_were_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tier = open_tier(tmp_path)
    for slab in (0, 1):
        tier.assign(slab, LARGE)
    kept = store(tier, slot(0, 3), b"x" * 262_144)
    store(tier, slot(1, 0), b"y" * 262_144)
    tier.close()
    os.truncate(tmp_path / "segment-0000", 2 * SLAB - 1)
    tier = open_tier(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert recovered(tier) == ({0: LARGE}, {kept.slot: kept})
    assert "slab 1" in caplog.text
    tier.assign(1, LARGE)
    again = store(tier, slot(1, 3), b"z" * 262_144)
    assert load(tier, again) == b"z" * 262_144
    os.truncate(tmp_path / "segment-0000", SLAB // 2)
    with pytest.raises(OSError, match="too early"):
        load(tier, kept)
    tier.close()


def test_a_missing_segment_is_an_empty_one(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    store(tier, slot(0, 0), b"x")
    tier.close()
    (tmp_path / "segment-0000").unlink()
    tier = open_tier(tmp_path)
    assert recovered(tier) == ({}, {})
    tier.close()


def test_flipped_payload_is_found_by_the_records_checksum(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    store(tier, slot(0, 1), os.urandom(200_000))
    tier.close()
    with (tmp_path / "segment-0000").open("r+b") as segment:
        segment.seek(262_144 + 150_000)
        byte = segment.read(1)[0]
        segment.seek(262_144 + 150_000)
        segment.write(bytes([byte ^ 4]))
    tier = open_tier(tmp_path)
    [record] = recovered(tier)[1].values()
    got = load(tier, record)
    assert digests.checksum(digests.page_digests(memoryview(got))) != record.checksum
    tier.close()


class FailingIo(FileIo):
    """The disk, with a queue of what the next calls do instead: an errno to raise, a count of bytes to stop after."""

    def __init__(self) -> None:
        self.opens: collections.deque[int] = collections.deque()
        self.reads: collections.deque[int | None] = collections.deque()
        self.writes: collections.deque[int | None] = collections.deque()
        self.part_bytes = 0
        self.direct_refused = False

    def open(self, path: Path, flags: int) -> int:
        if self.direct_refused and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().open(path, flags)

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self.reads and (number := self.reads.popleft()) is not None:
            raise OSError(number, os.strerror(number))
        return super().read(descriptor, self._part(buffers), offset)

    def write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self.writes and (number := self.writes.popleft()) is not None:
            raise OSError(number, os.strerror(number))
        return super().write(descriptor, self._part(buffers), offset)

    def _part(self, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        return [buffers[0][: self.part_bytes]] if self.part_bytes else buffers


@pytest.mark.parametrize("failing_call", [0, 1, 2])
def test_a_write_that_fails_leaves_nothing_or_the_old_record(tmp_path: Path, failing_call: int) -> None:
    """EIO when the record is voided, at the payload, at the new record."""
    disk = FailingIo()
    tier = open_tier(tmp_path, io=disk)
    tier.assign(0, LARGE)
    old = store(tier, slot(0, 0), b"old" * 1000, 1)
    disk.writes.extend([None] * failing_call + [errno.EIO])
    with pytest.raises(OSError) as caught:
        store(tier, slot(0, 0), b"new" * 1000, 2)
    assert caught.value.errno == errno.EIO
    tier.close()
    tier = open_tier(tmp_path)
    slabs, records = recovered(tier)
    assert slabs == {0: LARGE}
    assert records == ({old.slot: old} if failing_call == 0 else {})
    assert failing_call or load(tier, old) == b"old" * 1000
    new = store(tier, slot(0, 0), b"new" * 1000, 2)
    assert load(tier, new) == b"new" * 1000
    tier.close()


def test_a_read_that_fails_says_so_and_the_next_one_works(tmp_path: Path) -> None:
    disk = FailingIo()
    tier = open_tier(tmp_path, io=disk)
    tier.assign(0, LARGE)
    record = store(tier, slot(0, 0), b"x" * 5000)
    disk.reads.append(errno.EIO)
    with pytest.raises(OSError) as caught:
        load(tier, record)
    assert caught.value.errno == errno.EIO
    assert load(tier, record) == b"x" * 5000
    tier.close()


def test_partial_transfers_are_continued(tmp_path: Path) -> None:
    disk = FailingIo()
    tier = open_tier(tmp_path, io=disk)
    tier.assign(0, LARGE)
    disk.part_bytes = 8192
    payload = os.urandom(250_001)
    assert load(tier, store(tier, slot(0, 1), payload)) == payload
    tier.close()


def test_without_o_direct_it_works_through_the_page_cache_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FailingIo()
    disk.direct_refused = True
    tier = open_tier(tmp_path, io=disk)
    tier.assign(0, LARGE)
    with caplog.at_level(logging.WARNING):
        record = store(tier, slot(0, 2), b"abc" * 50_000)
    assert not tier.direct
    assert caplog.text.count("no O_DIRECT") == 1
    assert load(tier, record) == b"abc" * 50_000
    tier.close()


def test_an_io_that_refuses_alignment_late_falls_back_too(tmp_path: Path) -> None:
    disk = FailingIo()
    tier = open_tier(tmp_path, io=disk)
    tier.assign(0, LARGE)
    disk.writes.append(errno.EINVAL)
    record = store(tier, slot(0, 2), b"abc" * 50_000)
    assert not tier.direct
    assert load(tier, record) == b"abc" * 50_000
    tier.close()


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "mount"
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", target], check=True)


def test_a_full_disk_is_an_error_at_assign_and_the_rest_goes_on(small_file_system: Path) -> None:
    tier = open_tier(small_file_system, slabs=8)
    tier.assign(0, LARGE)
    tier.assign(1, LARGE)
    record = store(tier, slot(0, 0), b"x" * 1000)
    with pytest.raises(OSError) as caught:
        tier.assign(2, LARGE)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as caught:
        store(tier, slot(2, 0), b"x")
    assert caught.value.errno == errno.ENOSPC
    assert load(tier, record) == b"x" * 1000
    for index in range(4):
        store(tier, slot(1, index), bytes([index]) * 262_144, index)
    tier.close()
    tier = open_tier(small_file_system, slabs=8)
    slabs, records = recovered(tier)
    assert slabs == {0: LARGE, 1: LARGE}
    assert len(records) == 5
    tier.close()
