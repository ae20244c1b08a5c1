"""Tokens that lie in files as they are: little-endian uint16 or uint32, end to end, nothing else.

A file is one document, unless the id of the token that ends a document is given. Then the ends are looked for once, by
reading the whole file through the cache, and what was found is kept there as a derived object.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import TYPE_CHECKING

import torch

from shoal import derived
from shoal.objects import ObjectInfo
from shoal.torch.formats.documents import Documents
from shoal.torch.formats.listing import Listing
from shoal.torch.formats.progress import Progress
from shoal_core.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.derived import Buffer

TOKEN_BYTES = {"uint16": 2, "uint32": 4}
_SIGNED = {"uint16": torch.int16, "uint32": torch.int32}
"""torch compares these; the bits are the same."""
_VERSION = 1
_PIECE_BYTES = 32 << 20


class TokenFiles:
    """A `TokenSource`: each file is a token object."""

    def __init__(self, listing: Listing, dtype: str, end: int | None) -> None:
        if dtype not in TOKEN_BYTES:
            raise BadRequest(f"dtype: {dtype!r} is neither uint16 nor uint32")
        self._listing = listing
        self._dtype = dtype
        self._width = TOKEN_BYTES[dtype]
        if end is not None and not 0 <= end < 1 << 8 * self._width:
            raise BadRequest(f"end: {end} is no {dtype}")
        self._end = end
        for number in range(len(listing)):
            if listing.files.size(number) % self._width:
                size = listing.files.size(number)
                raise BadRequest(f"{listing.name(number)}: its {size} bytes are no whole number of {dtype} tokens")
        self.identity = listing.files.digest("token files", dtype)
        self.documents_identity = listing.files.digest("documents in token files", dtype, str(end))

    def __len__(self) -> int:
        return len(self._listing)

    def info(self, number: int) -> ObjectInfo:
        return self._listing.info(number)

    def width(self, number: int) -> int:
        return self._width

    def count(self, number: int) -> int:
        return self._listing.files.size(number) // self._width

    def again(self, client: Client, number: int, missing: NotFound) -> Buffer:
        raise missing

    def documents(self, client: Client) -> Documents:
        """Where documents begin in each file."""
        found = Documents(self._listing.files)
        if self._end is None:
            for number in range(len(self)):
                found.add(number, number, array("Q", [self.count(number)]))
            return found
        with Progress(f"looking for the ends of documents in {len(self)} files", len(self)) as progress:
            names = [self._name(number) for number in range(len(self))]

            def build(number: int) -> bytes:
                counts = self._scanned(client, number)
                progress.done(1)
                return counts.tobytes()

            for number, data in enumerate(derived.load_many(client, names, build)):
                found.add(number, number, array("Q", bytes(data)))
        return found

    def _name(self, number: int) -> str:
        text = f"{self.info(number).fingerprint.hex()} {self._dtype} {self._end}"
        return f"token-documents/{_VERSION}/{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"

    def _scanned(self, client: Client, number: int) -> array[int]:
        """Tokens of each document; the last may lack its end."""
        assert self._end is not None
        info, counts, begin = self.info(number), array("Q"), 0
        wanted = self._end if self._end < 1 << 8 * self._width - 1 else self._end - (1 << 8 * self._width)
        for offset in range(0, info.size, _PIECE_BYTES):
            piece = bytearray(min(_PIECE_BYTES, info.size - offset))
            client.read_into(info, piece, offset)
            ends = torch.nonzero(torch.frombuffer(piece, dtype=_SIGNED[self._dtype]) == wanted).flatten()
            for end in ends.tolist():
                behind = offset // self._width + end + 1
                counts.append(behind - begin)
                begin = behind
        if begin < self.count(number):
            counts.append(self.count(number) - begin)
        return counts
