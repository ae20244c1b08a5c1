"""The objects a node remembers: what a fingerprint stands for, so that a miss can be filled. Pure.

Least recently used first out. A client whose fingerprint is forgotten resolves the URL again, with the size and version
it knows, which costs no request to the origin.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container

import msgspec

from shoal_core import keys, limits


class ObjectRecord(msgspec.Struct, frozen=True, gc=False):
    """One version of one object in one space."""

    fingerprint: bytes
    url: str
    """At the origin (never shoal://)."""
    size: int
    etag: str
    space: int
    block_size_bytes: int

    def block_bytes(self, block: int) -> int:
        """Size of block number `block`; at most 0 beyond the end."""
        return min(self.block_size_bytes, self.size - block * self.block_size_bytes)

    @property
    def has_origin(self) -> bool:
        """Not for what was made of other objects, nor where only a block's key is known."""
        return bool(self.url) and not self.url.startswith(keys.DERIVED)

    @property
    def block_count(self) -> int:
        return keys.block_count(self.size, self.block_size_bytes)


def whole_record(key: bytes, space: int, size: int) -> ObjectRecord:
    """What stands for an object where only a block's key is known: block 0 is all of it, and no origin has it."""
    return ObjectRecord(key, "", size, "", space, max(size, 1))


class Objects:
    """Fingerprint -> record, and (space, URL) -> the record last resolved, with the time it was."""

    def __init__(self, count_max: int = limits.OBJECTS_REMEMBERED_MAX) -> None:
        self._records: OrderedDict[bytes, ObjectRecord] = OrderedDict()
        self._resolved: OrderedDict[tuple[int, str], tuple[bytes, float]] = OrderedDict()
        self._count_max = count_max

    def __len__(self) -> int:
        return len(self._records)

    def get(self, fingerprint: bytes) -> ObjectRecord | None:
        record = self._records.get(fingerprint)
        if record is not None:
            self._records.move_to_end(fingerprint)
        return record

    def remember(self, record: ObjectRecord, now_s: float | None) -> None:
        """Keep the record; with `now_s` also as what its URL resolved to at that time."""
        self._records[record.fingerprint] = record
        self._records.move_to_end(record.fingerprint)
        if len(self._records) > self._count_max:
            self._records.popitem(last=False)
        if now_s is not None:
            self._resolved[record.space, record.url] = record.fingerprint, now_s
            self._resolved.move_to_end((record.space, record.url))
            if len(self._resolved) > self._count_max:
                self._resolved.popitem(last=False)

    def resolved(self, space: int, url: str) -> tuple[ObjectRecord, float] | None:
        """(record, when) of the URL's last resolution."""
        found = self._resolved.get((space, url))
        record = self._records.get(found[0]) if found else None
        return (record, found[1]) if record is not None and found is not None else None

    def versions(self, urls: Container[str]) -> list[ObjectRecord]:
        """Every version that is remembered of what is at these URLs at the origin. Looks at all records."""
        return [record for record in self._records.values() if record.url in urls]

    def forget_space(self, space: int) -> None:
        """Nothing that was said of its objects counts any more. Looks at all records."""
        for fingerprint in [key for key, record in self._records.items() if record.space == space]:
            del self._records[fingerprint]
        for place in [place for place in self._resolved if place[0] == space]:
            del self._resolved[place]

    def forget_resolution(self, record: ObjectRecord) -> None:
        """The next open of its URL asks the origin again, unless that has found another version meanwhile."""
        found = self._resolved.get((record.space, record.url))
        if found is not None and found[0] == record.fingerprint:
            del self._resolved[record.space, record.url]
