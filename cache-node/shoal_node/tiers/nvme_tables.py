"""The tables of the NVMe tier: what recovery reads to know what lies in which slot, apart from the payload.

A table file belongs to one segment file and has one region per slab: a header of 64 bytes (the slab's class, a
generation, an own checksum), then one record of 64 bytes per slot. A record carries its slab's generation; assigning
a slab writes a header with a new generation, and so all its old records are void at once. A record counts only if its
own checksum, generation and slot are right; anything torn, flipped or stale reads as 'nothing here'.

Files are sparse and are read and written through the page cache: what was written survives the process, and after a
loss of power a lost record is a miss, while a record whose payload was lost is found out by the payload's checksum.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import msgspec
import xxhash

from shoal_core.limits import SLAB_SLOTS_MAX
from shoal_node.tiers.nvme_io import FileIo

ENTRY_BYTES = 64
_MAGIC = b"SHOALSLB"
_RECORD = struct.Struct("<16s8sQIIQQ")  # key, space, slot, size, generation, checksum, filled_at_s
_HEADER = struct.Struct("<8sQQII24x")  # magic, slab, slot_bytes, class_index, generation
_CHECKSUM = struct.Struct("<Q")
_NOTHING = bytes(ENTRY_BYTES)
assert _RECORD.size + _CHECKSUM.size == _HEADER.size + _CHECKSUM.size == ENTRY_BYTES


class Record(msgspec.Struct, frozen=True):
    """What is known of a block on disk without reading it."""

    slot: int
    key: bytes
    space: bytes
    size: int
    checksum: int
    """The block's: xxh3_64 of its page digest table. Whoever reads the payload checks it."""
    filled_at_s: int


class Slab(msgspec.Struct, frozen=True):
    """An assigned slab."""

    class_index: int
    slot_bytes: int
    generation: int


def region_bytes(slab_bytes: int, classes: tuple[int, ...]) -> int:
    """Table bytes of one slab when it is cut in the smallest slots; most of it is a hole in the file otherwise."""
    return -(-ENTRY_BYTES * (1 + slab_bytes // classes[0]) // 4096) * 4096


class Tables:
    """The table files of one tier. Calls for different slots may run at once."""

    def __init__(
        self, directory: Path, io: FileIo, slab_bytes: int, classes: tuple[int, ...], slabs_per_segment: int
    ) -> None:
        self._directory = directory
        self._io = io
        self._slab_bytes = slab_bytes
        self._classes = classes
        self._slabs_per_segment = slabs_per_segment
        self._region_bytes = region_bytes(slab_bytes, classes)
        self._files: dict[int, int] = {}
        self._written: dict[int, bytearray] = {}
        """By slab, by index: whether the slot may have a valid record. Voiding one costs 30 us: skip what is void."""
        self._lock = threading.Lock()

    def allocate(self, slab: int, class_index: int) -> None:
        """Reserve room in the file system, so that no record fails for want of it."""
        descriptor, offset = self._place(slab, 0)
        self._io.allocate(descriptor, offset, ENTRY_BYTES * (1 + self._slab_bytes // self._classes[class_index]))

    def assign(self, slab: int, class_index: int) -> Slab:
        """Write the slab's header; its old records are void from then on."""
        generation = int.from_bytes(os.urandom(4), "little")  # an old one recurs once in 2**32
        slot_bytes = self._classes[class_index]
        self._written[slab] = bytearray(self._slab_bytes // slot_bytes)
        self._write(slab, 0, _HEADER.pack(_MAGIC, slab, slot_bytes, class_index, generation))
        return Slab(class_index, slot_bytes, generation)

    def drop(self, slab: int) -> None:
        """The slab is assigned no more."""
        self._write(slab, 0, _NOTHING[: -_CHECKSUM.size], checked=False)

    def put(self, record: Record, slab: Slab) -> None:
        """Make the slot's record valid."""
        number, index = divmod(record.slot, SLAB_SLOTS_MAX)
        self._written[number][index] = 1
        fields = (record.key, record.space, record.slot, record.size, slab.generation)
        entry = _RECORD.pack(*fields, record.checksum, record.filled_at_s)
        self._write(number, 1 + index, entry)

    def erase(self, slot: int) -> None:
        """Void the slot's record."""
        number, index = divmod(slot, SLAB_SLOTS_MAX)
        if self._written[number][index]:
            self._write(number, 1 + index, _NOTHING[: -_CHECKSUM.size], checked=False)
            self._written[number][index] = 0

    def read_slab(self, slab: int) -> Slab | None:
        """The slab's header, if it is whole and fits the tier's classes."""
        entry = self._read(slab, 0, 1)
        if not _is_whole(entry):
            return None
        magic, number, slot_bytes, class_index, generation = _HEADER.unpack_from(entry)
        known = class_index < len(self._classes) and self._classes[class_index] == slot_bytes
        return Slab(class_index, slot_bytes, generation) if magic == _MAGIC and number == slab and known else None

    def read_records(self, number: int, slab: Slab) -> list[Record]:
        """The valid records of a slab."""
        # Torn records count as written: what is torn by a flipped bit today may read as valid tomorrow.
        self._written[number] = bytearray(b"\1") * (self._slab_bytes // slab.slot_bytes)
        entries = self._read(number, 1, self._slab_bytes // slab.slot_bytes)
        found: list[Record] = []
        for index in range(len(entries) // ENTRY_BYTES):
            entry = entries[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES]
            if entry == _NOTHING:
                self._written[number][index] = 0
                continue
            if not _is_whole(entry):
                continue
            key, space, slot, size, generation, checksum, filled_at_s = _RECORD.unpack_from(entry)
            if generation == slab.generation and slot == number * SLAB_SLOTS_MAX + index and size <= slab.slot_bytes:
                found.append(Record(slot, key, space, size, checksum, filled_at_s))
        return found

    def close(self) -> None:
        with self._lock:
            for descriptor in self._files.values():
                self._io.close(descriptor)
            self._files.clear()

    def _write(self, slab: int, entry_index: int, entry: bytes, *, checked: bool = True) -> None:
        own = xxhash.xxh3_64_intdigest(entry) if checked else 0
        descriptor, offset = self._place(slab, entry_index)
        self._io.write_all(descriptor, [memoryview(entry + _CHECKSUM.pack(own))], offset)

    def _read(self, slab: int, entry_index: int, count: int) -> bytes:
        """As many entries as the file has there; holes read as nothing."""
        descriptor, offset = self._place(slab, entry_index)
        buffer = bytearray(count * ENTRY_BYTES)
        return bytes(buffer[: self._io.read_some(descriptor, [memoryview(buffer)], offset)])

    def _place(self, slab: int, entry_index: int) -> tuple[int, int]:
        """(descriptor, offset) of an entry; 0 is the slab's header."""
        segment, position = divmod(slab, self._slabs_per_segment)
        descriptor = self._files.get(segment)
        if descriptor is None:
            with self._lock:
                descriptor = self._files.get(segment)
                if descriptor is None:
                    path = self._directory / f"entries-{segment:04}"
                    descriptor = self._files[segment] = self._io.open(path, os.O_RDWR | os.O_CREAT)
        return descriptor, position * self._region_bytes + entry_index * ENTRY_BYTES


def _is_whole(entry: bytes) -> bool:
    if len(entry) != ENTRY_BYTES:
        return False
    return _CHECKSUM.unpack_from(entry, ENTRY_BYTES - _CHECKSUM.size)[0] == xxhash.xxh3_64_intdigest(entry[:56])
