"""Documents in text files: one per file, or one per line of a `.jsonl` file, read part by part.

A part of a `.jsonl` file has the lines that begin in it, wherever they end; so any cuts give every line to one part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shoal.objects import ObjectInfo
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client

_LINES_SUFFIX = ".jsonl"
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_TAIL_BYTES = 1 << 20
"""Read at once for the rest of a part's last line."""


def is_lines(name: str) -> bool:
    """Whether each line is a document, so that the file may be cut into parts."""
    return name.lower().endswith(_LINES_SUFFIX)


def check_name(url: str) -> None:
    if url.lower().endswith(_COMPRESSED):
        raise BadRequest(f"{url}: is compressed; text is read as it is, so unpack it first")


def documents(client: Client, info: ObjectInfo, start: int, stop: int, text_field: str) -> Iterator[str]:
    """The texts of the documents that begin between two offsets. BadRequest names file and offset of what is none."""
    if not is_lines(info.url):
        yield _decoded(client.read(info), info.url, 0)
        return
    for offset, line in _lines(client, info, start, stop):
        if line.strip():
            yield _field(line, offset, text_field, info.url)


def _lines(client: Client, info: ObjectInfo, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(offset, line without its end). The byte before the part says whether a line begins with it."""
    first = max(start - 1, 0)
    data = client.read(info, first, stop - first)
    position = 0
    if start:
        position = data.find(b"\n") + 1
        if not position:
            return
    while position < len(data):
        end = data.find(b"\n", position)
        if end < 0:
            yield first + position, data[position:] + _rest(client, info, stop)
            return
        yield first + position, data[position:end]
        position = end + 1


def _rest(client: Client, info: ObjectInfo, offset: int) -> bytes:
    """From an offset to the end of the line, or of the file."""
    parts: list[bytes] = []
    while piece := client.read(info, offset, _TAIL_BYTES):
        line, newline, _ = piece.partition(b"\n")
        parts.append(line)
        if newline:
            break
        offset += len(piece)
    return b"".join(parts)


def _field(line: bytes, offset: int, text_field: str, url: str) -> str:
    try:
        record: Any = json.loads(_decoded(line, url, offset))
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"{url}: the line at offset {offset} is no JSON: {error}") from None
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise BadRequest(f"{url}: the line at offset {offset} has no text in a field {text_field!r} (text_field)")
    return text


def _decoded(data: bytes, url: str, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{url}: is not UTF-8 text at offset {offset + error.start}") from None
