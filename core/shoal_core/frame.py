"""Frames: the one format on every door.

    magic "SH" | version u8 | kind u8 | request u32 | body length u32 | payload length u32    (16 bytes, little endian)
    body: one msgpack value (see `verbs`)    payload: raw bytes, only on doors that carry bulk bytes

`kind` is the verb's number; a reply has the high bit set, an error reply is kind 0xFF with the body of `verbs.Failure`.
The decoder is incremental and never sees the payload: it hands out (header, body) and the owner of the socket receives
the payload straight into its destination. A frame of an unknown version or kind is well-formed and is answered with an
error; only bytes that cannot be a frame (bad magic, a length beyond the limits) end a connection.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from shoal_core import limits
from shoal_core.errors import ProtocolError

HEADER = struct.Struct("<2sBBIII")
HEADER_BYTES = HEADER.size
MAGIC = b"SH"
REPLY = 0x80
FAILURE = 0xFF


class Header(NamedTuple):
    version: int
    kind: int
    request: int
    body_bytes: int
    payload_bytes: int


def encode(kind: int, request: int, body: bytes, payload_bytes: int = 0) -> bytes:
    """Header and body of one frame; `payload_bytes` raw bytes must follow it on the wire."""
    if len(body) > limits.FRAME_BODY_BYTES_MAX or payload_bytes > limits.FRAME_PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"frame too large: body {len(body)}, payload {payload_bytes} bytes")
    return HEADER.pack(MAGIC, limits.WIRE_VERSION, kind, request, len(body), payload_bytes) + body


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in the first 16 bytes of `data`; ProtocolError if they cannot be one."""
    magic, version, kind, request, body_bytes, payload_bytes = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProtocolError(f"not a Shoal frame: starts with {bytes(magic)!r}")
    if body_bytes > limits.FRAME_BODY_BYTES_MAX or payload_bytes > limits.FRAME_PAYLOAD_BYTES_MAX:
        raise ProtocolError(f"frame too large: body {body_bytes}, payload {payload_bytes} bytes")
    return Header(version, kind, request, body_bytes, payload_bytes)


class Decoder:
    """Bytes in, (header, body) out. Holds at most one frame's header and body, plus what one `feed` brought."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: Header | None = None
        self._payload_left = 0

    def feed(self, data: bytes | memoryview) -> None:
        self._buffer += data

    @property
    def payload_left(self) -> int:
        """Bytes of the last frame's payload that were not taken yet. While it is not 0, `next_frame` gives None."""
        return self._payload_left

    def take_payload(self) -> bytes:
        """What has arrived of the pending payload, removed from the buffer."""
        taken = bytes(self._buffer[: self._payload_left])
        del self._buffer[: len(taken)]
        self._payload_left -= len(taken)
        return taken

    def next_frame(self) -> tuple[Header, bytes] | None:
        """The next whole frame, or None while bytes are missing."""
        if self._payload_left:
            return None
        if self._header is None:
            if len(self._buffer) < HEADER_BYTES:
                return None
            self._header = parse_header(self._buffer)
        end = HEADER_BYTES + self._header.body_bytes
        if len(self._buffer) < end:
            return None
        header, body = self._header, bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        self._header = None
        self._payload_left = header.payload_bytes
        return header, body
