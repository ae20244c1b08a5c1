"""Where each sample of one tar shard lies: flat buffers over one string of bytes, which is what the cache keeps.

A sample is a run of members that share their name up to the first dot of its last part, which is WebDataset's
convention; the rest is the extension, in lower case. Members without a name before the dot or without a dot belong to
none, and neither does WebDataset's own `__...__`. No Python object per member or sample: reading a sample's row decodes
it, and an index pickles as its bytes.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from shoal.torch.formats import tar
from shoal_core.errors import OriginError

VERSION = 1
"""Of the bytes: another number, another name in the cache."""

_HEADER = struct.Struct("<5Q")
_EXTENSIONS_MAX = 1 << 16


class Part(NamedTuple):
    """One member of a sample."""

    extension: str
    offset: int
    size: int


class ShardIndex:
    """Never changes. Made by `build`, or of the bytes that `build` made."""

    __slots__ = ("_data", "_extensions", "_firsts", "_key_ends", "_keys", "_kinds", "_offsets", "_sizes")

    def __init__(self, data: bytes | bytearray) -> None:
        """ValueError for bytes of another form."""
        samples, members, key_bytes, extension_bytes, size = _HEADER.unpack_from(data)
        if size != len(data):
            raise ValueError(f"an index of {len(data)} bytes that says {size}")
        self._data = bytes(data)
        view = memoryview(self._data)
        at = _HEADER.size

        def take(length: int, code: Literal["B", "H", "I", "Q"] = "B") -> Any:
            nonlocal at
            part = view[at : at + length]
            at += length
            return part.cast(code)

        self._offsets = take(8 * members, "Q")
        self._sizes = take(8 * members, "Q")
        self._key_ends = take(8 * samples, "Q")
        self._firsts = take(4 * samples + 4, "I")
        """By sample its first member; one more, so that a sample's end is the next one's beginning."""
        self._kinds = take(2 * members, "H")
        self._keys = take(key_bytes)
        self._extensions = tuple(_decoded(text) for text in bytes(take(extension_bytes)).split(b"\0")[:-1])

    def __len__(self) -> int:
        """Samples."""
        return len(self._key_ends)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndex, (self._data,)

    @property
    def data(self) -> bytes:
        return self._data

    def key(self, number: int) -> str:
        return _decoded(bytes(self._keys[self._key_ends[number - 1] if number else 0 : self._key_ends[number]]))

    def parts(self, number: int) -> Iterator[Part]:
        """The members of a sample, in the order in which they lie."""
        for member in range(self._firsts[number], self._firsts[number + 1]):
            yield Part(self._extensions[self._kinds[member]], self._offsets[member], self._sizes[member])

    def begin(self, number: int) -> int:
        """Offset of a sample's first byte."""
        return self._offsets[self._firsts[number]]

    def end(self, number: int) -> int:
        """Offset behind a sample's last byte."""
        last = self._firsts[number + 1] - 1
        return self._offsets[last] + self._sizes[last]


def build(members: Iterable[tar.Member], url: str) -> ShardIndex:
    """The index of a shard's members. OriginError for two of one name in one sample."""
    offsets, sizes, kinds = array("Q"), array("Q"), array("H")
    firsts, key_ends, keys = array("I"), array("Q"), bytearray()
    extensions: dict[str, int] = {}
    key, seen = "", set[str]()
    for member in members:
        if (name := split(member.name)) is None:
            continue
        if name[0] != key:
            key, seen = name[0], set()
            keys += _encoded(key)
            key_ends.append(len(keys))
            firsts.append(len(offsets))
        if name[1] in seen:
            raise OriginError(f"{url}: {member.name!r} at offset {member.offset} is the second of its name in a sample")
        seen.add(name[1])
        kinds.append(extensions.setdefault(name[1], len(extensions)) % _EXTENSIONS_MAX)
        offsets.append(member.offset)
        sizes.append(member.size)
    if len(extensions) > _EXTENSIONS_MAX:
        raise OriginError(f"{url}: members have {len(extensions)} different extensions; at most {_EXTENSIONS_MAX}")
    firsts.append(len(offsets))
    texts = b"".join(_encoded(extension) + b"\0" for extension in extensions)
    rows = b"".join(rows.tobytes() for rows in (offsets, sizes, key_ends, firsts, kinds))
    size = _HEADER.size + len(rows) + len(keys) + len(texts)
    header = _HEADER.pack(len(key_ends), len(offsets), len(keys), len(texts), size)
    return ShardIndex(header + rows + keys + texts)


def split(name: str) -> tuple[str, str] | None:
    """(key, extension) of a member; None for one that belongs to no sample."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot or (not folder and name.startswith("__") and name.endswith("__")):
        return None
    return folder + slash + stem, extension.lower()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
