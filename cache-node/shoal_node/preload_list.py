"""The objects of a preload of which this node is to hold a part, kept while the preload runs.

Written once, as they are listed, and read in that order as often as need be. A file without a name, in memory as long
as it is small: ten million objects are about a gigabyte, and none of the node's budget is meant for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import msgspec

_MEMORY_BYTES = 8 << 20


class Row(msgspec.Struct, array_like=True, gc=False):
    """One object."""

    url: str
    size: int
    etag: str
    is_led: bool
    """This node leads its first block: it counts the object."""
    blocks: list[int]
    """Those that this node is to hold; may be empty where it is led."""


class PreloadList:
    """Close it: the file goes with it."""

    def __init__(self, directory: str | None) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES, dir=directory)  # noqa: SIM115 closed by `close`
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Row)

    def add(self, row: Row) -> None:
        data = self._encoder.encode(row)
        self._file.write(len(data).to_bytes(4, "little") + data)

    def rows(self) -> Iterator[Row]:
        """All of them; while they are read nothing is added, and nobody else reads."""
        self._file.seek(0)
        while head := self._file.read(4):
            yield self._decoder.decode(self._file.read(int.from_bytes(head, "little")))

    def close(self) -> None:
        self._file.close()
