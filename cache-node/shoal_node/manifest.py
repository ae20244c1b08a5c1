"""One digest for all objects of a data set: names, sizes and versions, in whatever order an origin lists them. Pure.

Two listings have the same digest when they hold the same objects, however many, in constant memory: the digests of the
rows are added up, as numbers. It tells versions apart; it is no proof against somebody who may choose objects' names
to have two different sets look alike, and who could change what is at the origin anyway.
"""

from __future__ import annotations

import hashlib

_ROW_BYTES = 32
_MODULUS = 1 << (8 * _ROW_BYTES)


class Manifest:
    """Objects are added one after the other, each once."""

    __slots__ = ("_sum", "bytes", "objects")

    def __init__(self) -> None:
        self.objects = 0
        self.bytes = 0
        self._sum = 0

    def add(self, name: str, size: int, etag: str) -> None:
        """`name` is the path below the data set's URL."""
        text = name.encode("utf-8", "surrogatepass")
        row = b"%d %d %b%b" % (len(text), size, text, etag.encode("utf-8", "surrogatepass"))
        self.objects += 1
        self.bytes += size
        self._sum += int.from_bytes(hashlib.blake2b(row, digest_size=_ROW_BYTES).digest(), "little")

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        whole = self.objects.to_bytes(8, "little") + (self._sum % _MODULUS).to_bytes(_ROW_BYTES, "little")
        return hashlib.blake2b(whole, digest_size=16).hexdigest()
