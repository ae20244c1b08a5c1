"""A file object over one cached object: read-only, seekable, for everything that takes an open file.

`ShoalFile` is the raw layer: the object is looked up at opening (a missing one is an error there, as with `open`) and
read in that version to the end; each read goes through the client straight into the caller's buffer. `open_binary`
puts Python's own `io.BufferedReader` on top, so small reads and lines cost no message, and large ones still land in
the caller's memory without a copy in between. The node is asked to fill ahead of a sequential reader. A file that was
opened before a fork works in the child, because the client connects anew there; the position is then each process's.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, cast

from shoal_core.errors import BadRequest, Closed, ShoalError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from shoal.client import Client

BUFFER_BYTES = 256 << 10
"""Filling it costs one hit (a few us of Python and a 20 us copy): little beside parsing as many bytes, and not so much
that looking at the last 8 bytes of a file hurts."""

AHEAD_BLOCKS = 8
"""How far the node fills ahead of a sequential reader: several requests to the origin at once, not one by one."""


class ShoalFile(io.RawIOBase):
    """The unbuffered file. Every error names the URL."""

    mode = "rb"

    def __init__(self, client: Client, url: str) -> None:
        self.name = url
        self._client = client
        self._position = 0
        # Every read names this version: a file never mixes two, however long it stays open.
        self._info = client.info(url)
        self.size = self._info.size
        self._run_start = self._run_end = 0
        """The bytes that were read one after the other up to now."""
        self._asked_end = 0
        """Up to where the node was asked to fill already."""

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills as much of the buffer as the object has from here on; 0 at the end."""
        self._require_open()
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.size - self._position)
        if wanted <= 0:
            return 0
        self._read_ahead(wanted)
        done = self._client.read_into(self._info, view[:wanted], self._position)
        self._position += done
        return done

    def readall(self) -> bytes:
        """The rest of the object in one read."""
        self._require_open()
        if self._position >= self.size:
            return b""
        rest = self._client.read(self._info, self._position, self.size - self._position)
        self._position += len(rest)
        return rest

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._require_open()
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if start is None:
            raise BadRequest(f"{self.name}: seek knows the origins 0, 1 and 2, not {whence}")
        if start + offset < 0:
            raise BadRequest(f"{self.name}: seek to {start + offset}, before the start of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        self._require_open()
        return self._position

    def readable(self) -> bool:
        self._require_open()
        return True

    def seekable(self) -> bool:
        self._require_open()
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}{' closed' if self.closed else ''}>"

    def _read_ahead(self, wanted: int) -> None:
        """Who has read more than a block from one start on is likely to go on."""
        start, end, block_bytes = self._position, self._position + wanted, self._info.block_size_bytes
        if start != self._run_end:
            self._run_start = self._asked_end = start
        self._run_end = end
        if end - self._run_start <= block_bytes or end + AHEAD_BLOCKS * block_bytes // 2 <= self._asked_end:
            return
        begin, self._asked_end = max(end, self._asked_end), end + AHEAD_BLOCKS * block_bytes
        if begin < self.size:
            # A hint only: if something is wrong, the read itself will say so.
            with contextlib.suppress(ShoalError):
                self._client.prefetch(self._info, begin, self._asked_end - begin)

    def _require_open(self) -> None:
        if self.closed:
            raise Closed(f"{self.name}: this file has been closed")


class BufferedShoalFile(io.BufferedReader):
    """What `open` returns: a buffered reader that also tells the object's size, as fsspec's files do."""

    @property
    def size(self) -> int:
        return cast("ShoalFile", self.raw).size


def open_binary(client: Client, url: str, mode: str = "rb", buffer_bytes: int = BUFFER_BYTES) -> BufferedShoalFile:
    """Opens the object for reading. Shoal caches what origins hold and never writes there."""
    if mode != "rb":
        raise BadRequest(f"{url}: mode {mode!r}: Shoal only reads, as 'rb'; write to the origin itself")
    return BufferedShoalFile(ShoalFile(client, url), buffer_bytes)
