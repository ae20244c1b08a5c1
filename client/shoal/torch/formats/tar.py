"""The members of a tar file, found by reading its headers and skipping what lies between them.

Reads ustar, GNU (long names, sizes beyond 8 GiB) and pax archives, which is what tar, tarfile and webdataset write.
Yields regular files only; folders, links and devices are passed over. What cannot be read at random (gzip) or has no
bytes in one piece (sparse files), and whatever is damaged or cut off, is an error that names the archive and the
offset. Knows nothing of where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from shoal_core.errors import BadRequest, OriginError

Read = Callable[[int, int], bytes]
"""`read(offset, length)`: exactly so many bytes."""

_RECORD = 512
_NAME, _SIZE, _CHECKSUM, _PREFIX = slice(0, 100), slice(124, 136), slice(148, 156), slice(345, 500)
_MAGIC = slice(257, 263)
_REGULAR = b"0\x007"
_WITHOUT_DATA = b"123456"
"""Links, devices, folders and pipes: whatever size they give, no bytes follow."""
_ABOUT_THE_NEXT = b"LKxXg"
"""A long name, a long link, pax fields of the next member (twice), and of all that follow."""
_TEXT_BYTES_MAX = 1 << 20
"""Of a long name or a pax header."""


class Member(NamedTuple):
    """A regular file in the archive."""

    name: str
    offset: int
    """Of its first byte in the archive."""
    size: int


def members(read: Read, size: int, url: str) -> Iterator[Member]:
    """All regular files, in the order in which they lie. OriginError or BadRequest names `url` and an offset."""
    offset = 0
    here: dict[str, str] = {}
    """pax fields of the next member. Those of all members say nothing that matters here."""
    while offset < size:
        if offset + _RECORD > size:
            raise OriginError(f"{url}: cut off in the header at offset {offset} of {size}")
        header = read(offset, _RECORD)
        if not any(header):
            return  # the end of the archive; what may follow is padding
        _check(header, offset, url)
        kind, data = header[156:157], offset + _RECORD
        length = _field(header, offset, url)
        if kind in _REGULAR or kind not in _WITHOUT_DATA:
            if kind not in _ABOUT_THE_NEXT:
                length = int(here.get("size", length))
            offset = data + -(-length // _RECORD) * _RECORD
        else:
            offset = data
        if kind in _REGULAR and (kind != b"\x00" or not header[_NAME].rstrip(b"\0").endswith(b"/")):
            if data + length > size:
                raise OriginError(f"{url}: cut off: {_name(header)!r} at offset {data} ends beyond the {size} bytes")
            _refuse_sparse(kind, here, _name(header), data, url)
            yield Member(here.get("path") or _name(header), data, length)
        elif kind in _ABOUT_THE_NEXT:
            if data + length > size or length > _TEXT_BYTES_MAX:
                raise OriginError(f"{url}: cut off or damaged in the header at offset {data}, {length} bytes")
            text = read(data, length)
            if kind == b"L":
                here["path"] = _text(text)
            elif kind in b"xX":
                here.update(_pax(text, data, url))
            continue  # what it says is about the member that follows
        elif kind == b"S":
            _refuse_sparse(kind, here, _name(header), data, url)
        here = {}


def _check(header: bytes, offset: int, url: str) -> None:
    if not offset and header[:2] == b"\x1f\x8b":
        raise BadRequest(f"{url}: is compressed by gzip, so no sample can be read alone; unpack it to a plain tar file")
    stated = _octal(header[_CHECKSUM])
    # The field itself counts as spaces. Some old archivers added signed bytes.
    others = header[:148] + header[156:]
    unsigned = 256 + sum(others)
    signed = unsigned - 256 * sum(byte > 127 for byte in others)
    if stated not in (unsigned, signed):
        raise OriginError(f"{url}: no tar header at offset {offset}: damaged, or not a tar file")


def _field(header: bytes, offset: int, url: str) -> int:
    """The size. Base 256 where the first bit is set, else octal digits."""
    field = header[_SIZE]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if size is None:
        raise OriginError(f"{url}: the header at offset {offset} gives no size")
    return size


def _octal(field: bytes) -> int | None:
    digits = field.partition(b"\0")[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name, prefix = _text(header[_NAME]), _text(header[_PREFIX])
    # GNU archives keep other things where POSIX ones keep the beginning of a long path.
    return f"{prefix}/{name}" if prefix and header[_MAGIC] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax(text: bytes, offset: int, url: str) -> dict[str, str]:
    """Records of the form '<length> <field>=<value>\\n', the length counting the whole record."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(text) and text[position]:
        digits = text[position : position + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = text[position + len(digits) + 1 : position + length]
        field, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or len(record) != length - len(digits) - 1:
            raise OriginError(f"{url}: the pax header at offset {offset} is damaged")
        fields[_text(field)] = value[:-1].decode("utf-8", "surrogateescape")
        position += length
    if not fields.get("size", "0").isdigit():
        raise OriginError(f"{url}: the pax header at offset {offset} gives no size")
    return fields


def _refuse_sparse(kind: bytes, fields: dict[str, str], name: str, offset: int, url: str) -> None:
    if kind == b"S" or any(field.startswith("GNU.sparse.") for field in fields):
        raise BadRequest(f"{url}: {name!r} at offset {offset} is a sparse file, which does not lie there in one piece")
