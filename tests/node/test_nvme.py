"""The NVMe tier: what it keeps, also over a restart, and who may use it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal_core.errors import Closed, ConfigError, InvariantBroken
from shoal_core.limits import MIB
from shoal_node.tiers.nvme import FileIo, NvmeTier
from tests.node.nvme_blocks import CLASSES, LARGE, SLAB, aligned, load, open_tier, record_of, recovered, slot, store


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
