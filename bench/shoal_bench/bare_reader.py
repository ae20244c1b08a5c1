"""The reading end of the bare loop over TCP (`bare_peers send` is the other): as little Python as can do the same work.

One request per batch; blocks are received with recv_into (MSG_WAITALL) into the caller's memory, and where it is asked
for, every 64 KiB page is compared with its digest, as our readers always do.
"""

from __future__ import annotations

import socket

import xxhash

from shoal_bench import bare_peers
from shoal_bench.places import BLOCK_BYTES
from shoal_core.limits import MIB, PAGE_BYTES

BATCH_BYTES = 64 * MIB
"""What a client asks for in one request."""


class BareReader:
    """One connection."""

    def __init__(self, port: int, host: str = "127.0.0.1", block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = memoryview(bare_peers.content(MIB))
        self._digests = [
            xxhash.xxh3_64_intdigest(data[start : start + PAGE_BYTES]) for start in range(0, MIB, PAGE_BYTES)
        ] * (2 + block_bytes // MIB)

    def read(self, target: memoryview, offset: int, *, check: bool) -> None:
        """One range, in batches."""
        digest, known = xxhash.xxh3_64_intdigest, self._digests
        for start in range(0, len(target), BATCH_BYTES):
            batch = target[start : start + BATCH_BYTES]
            self._socket.sendall(bare_peers.REQUEST.pack(offset + start, len(batch)))
            for first in range(0, len(batch), self._block_bytes):
                block = batch[first : first + self._block_bytes]
                done = self._socket.recv_into(block, len(block), socket.MSG_WAITALL)
                while done < len(block):
                    done += self._socket.recv_into(block[done:], len(block) - done, socket.MSG_WAITALL)
                if check:
                    page = (offset + start + first) % MIB // PAGE_BYTES
                    found = [digest(block[at : at + PAGE_BYTES]) for at in range(0, len(block), PAGE_BYTES)]
                    assert found == known[page : page + len(found)]

    def close(self) -> None:
        self._socket.close()
