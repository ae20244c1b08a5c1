"""The NVMe tier: what it keeps over a restart, and what it does when directory, files or disk are not in order."""

from __future__ import annotations

import collections
import errno
import json
import logging
import mmap
import os
import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal_core import digests
from shoal_core.errors import Closed, ConfigError, InvariantBroken
from shoal_core.limits import MIB, SLAB_SLOTS_MAX
from shoal_node.tiers.nvme import FileIo, NvmeTier, Record

SLAB = 1 * MIB
CLASSES = (512, 4096, 65536, 262144)
LARGE = 3  # index of the class that most tests use: four slots to a slab


def slot(slab: int, index: int) -> int:
    return slab * SLAB_SLOTS_MAX + index


def aligned(size: int, content: bytes = b"") -> memoryview:
    view = memoryview(mmap.mmap(-1, max(size, 1)))[:size]
    view[: len(content)] = content
    return view


def record_of(slot_number: int, payload: memoryview | bytes, seed: int = 1) -> Record:
    checksum = digests.checksum(digests.page_digests(memoryview(payload)))
    return Record(slot_number, seed.to_bytes(16, "little"), b"space678", len(payload), checksum, 1_700_000_000 + seed)


def open_tier(directory: Path, *, slabs: int = 8, io: FileIo | None = None) -> NvmeTier:
    return NvmeTier(str(directory), slabs * 2 * SLAB, SLAB, CLASSES, io)


def store(tier: NvmeTier, slot_number: int, payload: bytes, seed: int = 1) -> Record:
    record = record_of(slot_number, payload, seed)
    tier.write(record, aligned(len(payload), payload))
    return record


def load(tier: NvmeTier, record: Record) -> bytes:
    into = aligned(record.size)
    tier.read(record.slot, record.size, into)
    return bytes(into)


def recovered(tier: NvmeTier) -> tuple[dict[int, int], dict[int, Record]]:
    """({slab: class index}, {slot: record})"""
    slabs: dict[int, int] = {}
    records: dict[int, Record] = {}
    for found in tier.recover():
        if isinstance(found, Record):
            assert found.slot // SLAB_SLOTS_MAX in slabs, "a record came before its slab"
            records[found.slot] = found
        else:
            slabs[found[1]] = found[2]
    return slabs, records


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[NvmeTier]:
    opened = open_tier(tmp_path / "tier")
    yield opened
    opened.close()


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4095, 4096, 4097, 65536, 100_001, 262_143, 262_144])
@pytest.mark.parametrize("shift", [0, 1])
def test_gives_back_what_was_written(tier: NvmeTier, size: int, shift: int) -> None:
    """From and into aligned memory and not, whole pages and not, in a slot between two others."""
    tier.assign(1, LARGE)
    neighbours = [store(tier, slot(1, index), os.urandom(262_144), index) for index in (0, 2)]
    before = [load(tier, record) for record in neighbours]
    source = aligned(size + shift)[shift:]
    source[:] = os.urandom(size)
    tier.write(record_of(slot(1, 1), source), source)
    into = aligned(size + shift + 100)
    into[:] = b"\xaa" * len(into)
    tier.read(slot(1, 1), size, into[shift:])
    assert into[shift : shift + size] == source
    assert bytes(into[:shift]) + bytes(into[shift + size :]) == b"\xaa" * (shift + 100)
    assert [load(tier, record) for record in neighbours] == before


def test_takes_read_only_memory(tier: NvmeTier) -> None:
    tier.assign(0, LARGE)
    payload = os.urandom(70_000)
    tier.write(record_of(slot(0, 3), payload), memoryview(payload))
    assert load(tier, record_of(slot(0, 3), payload)) == payload


def test_the_rest_of_a_page_on_disk_is_zero(tier: NvmeTier, tmp_path: Path) -> None:
    """And holds nothing of the block that went through the same buffer before."""
    tier.assign(0, LARGE)
    for index in (0, 1):
        store(tier, slot(0, index), b"secret" * 600)
        store(tier, slot(0, 2 + index), b"x" * 10)
        unaligned = memoryview(b"y" * 5000)
        tier.write(record_of(slot(0, index), unaligned), unaligned)
    on_disk = (tmp_path / "tier" / "segment-0000").read_bytes()
    assert b"secret" not in on_disk
    for index in (2, 3):
        assert on_disk[index * 262_144 :][:4096] == b"x" * 10 + bytes(4086)
    for index in (0, 1):
        assert on_disk[index * 262_144 :][:8192] == b"y" * 5000 + bytes(3192)


def test_small_slots_share_the_file_with_large_ones(tier: NvmeTier) -> None:
    tier.assign(0, 0)
    tier.assign(1, 1)
    records = {index: store(tier, slot(0, index), bytes([index]) * 300, index) for index in range(1, 200)}
    large = store(tier, slot(1, 255), b"x" * 4000)
    assert all(load(tier, record) == bytes([index]) * 300 for index, record in records.items())
    assert load(tier, large) == b"x" * 4000


def test_a_restart_finds_slabs_and_records(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    tier.assign(5, 0)
    kept = {r.slot: r for r in (store(tier, slot(0, 0), b"a" * 262_144), store(tier, slot(5, 2047), b"\xe9" * 9, 2))}
    gone = store(tier, slot(0, 1), b"b" * 1000)
    tier.erase(gone.slot)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered(tier) == ({0: LARGE, 5: 0}, kept)
    assert load(tier, kept[slot(0, 0)]) == b"a" * 262_144
    tier.close()


def test_assigning_a_slab_again_voids_its_records(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    store(tier, slot(0, 1), b"old" * 100)
    tier.assign(0, LARGE)
    new = store(tier, slot(0, 2), b"new" * 100)
    tier.close()
    tier = open_tier(tmp_path)
    assert recovered(tier) == ({0: LARGE}, {new.slot: new})
    tier.close()


def test_a_changed_budget_keeps_what_fits(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, slabs=8)
    for slab in (0, 7):
        tier.assign(slab, LARGE)
    low = store(tier, slot(0, 1), b"low" * 1000)
    store(tier, slot(7, 1), b"high" * 1000)
    tier.close()
    tier = open_tier(tmp_path, slabs=2)
    assert recovered(tier) == ({0: LARGE}, {low.slot: low})
    assert load(tier, low) == b"low" * 1000
    assert used_bytes(tmp_path) <= 2 * 2 * SLAB
    tier.close()
    tier = open_tier(tmp_path, slabs=32)
    assert recovered(tier) == ({0: LARGE}, {low.slot: low})
    tier.assign(31, LARGE)
    tier.close()


def used_bytes(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def test_the_directory_stays_within_the_budget(tmp_path: Path) -> None:
    """Every slab full of the smallest slots, whose table is the largest."""
    budget = 5 * MIB
    tier = NvmeTier(str(tmp_path), budget, SLAB, CLASSES)
    assert tier.slab_count == 4
    for slab in range(tier.slab_count):
        tier.assign(slab, 0)
        store(tier, slot(slab, 0), b"1")
        store(tier, slot(slab, 2047), b"1")
    assert 4 * SLAB <= used_bytes(tmp_path) <= budget
    with pytest.raises(InvariantBroken):
        tier.assign(tier.slab_count, 0)
    tier.close()


def test_a_budget_below_one_slab_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}.*budget of 1000 bytes"):
        NvmeTier(str(tmp_path), 1000, SLAB, CLASSES)


def test_a_second_opener_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    record = store(tier, slot(0, 0), b"x")
    (tmp_path / "shoal.json").write_text("damaged while open")
    with pytest.raises(ConfigError, match=f"{tmp_path} is in use by process {os.getpid()}$"):
        open_tier(tmp_path)
    assert load(tier, record) == b"x"
    tier.close()
    open_tier(tmp_path).close()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/none"])
def test_a_directory_that_cannot_be_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        open_tier(Path(path))


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


def test_what_is_not_assigned_or_too_large_is_refused(tier: NvmeTier) -> None:
    tier.assign(0, LARGE)
    for bad in (record_of(slot(1, 0), b"x"), record_of(slot(0, 4), b"x"), record_of(slot(0, 0), bytes(262_145))):
        with pytest.raises(InvariantBroken):
            tier.write(bad, memoryview(bytes(bad.size)))
    with pytest.raises(InvariantBroken, match="record of 1 bytes, payload of 2"):
        tier.write(record_of(slot(0, 0), b"x"), memoryview(b"xy"))


def test_after_close_every_call_says_closed(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.assign(0, LARGE)
    record = store(tier, slot(0, 0), b"x")
    tier.close()
    tier.close()
    for call in (lambda: load(tier, record), lambda: tier.erase(record.slot), lambda: tier.assign(1, LARGE)):
        with pytest.raises(Closed):
            call()


def test_close_waits_for_a_call_that_still_runs(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class WaitingIo(FileIo):
        def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            inside.set()
            assert go_on.wait(20)
            return super().read(descriptor, buffers, offset)

    tier = open_tier(tmp_path, io=WaitingIo())
    tier.assign(0, LARGE)
    record = store(tier, slot(0, 0), b"x" * 5000)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(load, tier, record)
        assert inside.wait(20)
        closing = pool.submit(tier.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.05)
        go_on.set()
        assert reading.result() == b"x" * 5000
        closing.result(timeout=20)


def test_many_threads_at_once(tier: NvmeTier) -> None:
    for slab in range(8):
        tier.assign(slab, LARGE if slab % 2 else 2)

    def turn(seed: int) -> None:
        chance = random.Random(seed)
        for round_number in range(12):
            payload = chance.randbytes(chance.randrange(1, 65_536))
            record = store(tier, slot(seed, round_number % 4), payload, seed)
            assert load(tier, record) == payload

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(turn, range(8)))
