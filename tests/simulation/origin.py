"""The origin: objects with versions, which it gives in ranges, late, sometimes not at all; and the account of reads.

What a block's bytes are is told by its key alone, which holds the object's version: so anybody can say what must have
been read, and a block of another version is never like it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from shoal_core import keys
from shoal_core.errors import ObjectChanged, OriginError
from shoal_node.objects import ObjectRecord
from tests.simulation.world import MS, Process, World

PLACE = "s3://bucket"
TENANT = "tenant"


@dataclass
class Stored:
    """An object as it is now."""

    url: str
    size: int
    version: int
    space: str

    @property
    def etag(self) -> str:
        return f"v{self.version}"

    @property
    def name(self) -> str:
        """Its URL for users."""
        return self.url if self.space == "default" else f"shoal://{self.space}/{self.url.rpartition('/')[2]}"


class Origin:
    """One bucket."""

    def __init__(self, world: World, block_size_bytes: int) -> None:
        self.world = world
        self.block_size_bytes = block_size_bytes
        self.objects: list[Stored] = []
        self.refusing = False
        self.latency_ns = 5 * MS
        self.reads: Counter[bytes] = Counter()
        """Times that each block was given or refused, by key."""
        self.given: Counter[bytes] = Counter()
        """Times that each was given to a node."""
        self.at_once: Counter[str] = Counter()
        """Reads under way, by reader."""
        self.most_at_once: Counter[str] = Counter()
        self._bytes: dict[bytes, bytes] = {}

    def content(self, key: bytes, size: int) -> bytes:
        """The bytes of a block."""
        found = self._bytes.get(key)
        if found is None or len(found) != size:
            found = self._bytes[key] = hashlib.shake_128(key).digest(size)
        return found

    def change(self, stored: Stored) -> None:
        """Another version is put in its place."""
        stored.version += 1

    def record(self, stored: Stored, space: int = 0) -> ObjectRecord:
        """What is known of it after a HEAD."""
        uid = keys.space_uid(TENANT, stored.space)
        block = self.block_size_bytes
        fingerprint = keys.object_fingerprint(uid, stored.url, stored.etag, stored.size, block)
        return ObjectRecord(fingerprint, stored.url, stored.size, stored.etag, space, block)

    def read(
        self, reader: Process, name: str, record: ObjectRecord, first: int, count: int
    ) -> Generator[Any, Any, list[bytes]]:
        """So many blocks of exactly that version."""
        self.at_once[name] += 1
        self.most_at_once[name] = max(self.most_at_once[name], self.at_once[name])
        wanted = [keys.block_key(record.fingerprint, block) for block in range(first, first + count)]
        for key in wanted:
            self.reads[key] += 1
            self.world.note("origin read", name, key)
        try:
            yield int(self.latency_ns * (0.5 + self.world.chance.random()))
            if self.refusing:
                raise OriginError(f"{record.url}: 503")
            if not any(stored.url == record.url and stored.etag == record.etag for stored in self.objects):
                raise ObjectChanged(f"{record.url}: it is another version")
            if name.startswith("n"):
                self.given.update(wanted)
            numbers = range(first, first + count)
            return [self.content(key, record.block_bytes(block)) for key, block in zip(wanted, numbers, strict=True)]
        finally:
            self.at_once[name] -= 1
