"""Text that is tokenised once: its tokens lie in the cache as derived objects, one for each chunk of files.

A chunk is some 32 MiB of text, neighbouring files together or a part of a long `.jsonl` file. Two objects are kept of
it: the tokens, and a small table with their digest and the number of tokens of each document. The table is stored last,
so a chunk whose table is there was done, and a run that was interrupted goes on behind it. Both are named by versions
of the files, the tokenizer's name and the options. Tokens that the cache has lost are made again, from the text, when
they are read; if they are not the same, the tokenizer is not what its name said.
"""

from __future__ import annotations

import bisect
import hashlib
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shoal import derived
from shoal.objects import ObjectInfo
from shoal.torch.formats import texts
from shoal.torch.formats.chunks import Chunks
from shoal.torch.formats.documents import Documents
from shoal.torch.formats.listing import Listing
from shoal.torch.formats.progress import Progress
from shoal_core import keys
from shoal_core.errors import BadRequest, NotFound
from shoal_core.verbs import resolve

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.derived import Buffer

_VERSION = 1
_TABLE = struct.Struct("<QQ16s")
"""Bytes of a token, tokens, their digest; then for each document its file's place in the chunk and its tokens."""


class Tokenizer(NamedTuple):
    """How text becomes tokens."""

    encode: Callable[[str], Sequence[int]]
    """The ids of a document's tokens, each below 2**32. Workers that are spawned must be able to unpickle it."""
    name: str
    """Stands for what `encode` does, wherever tokens are remembered: other tokens, another name."""


class TokenisedText:
    """A `TokenSource`: each chunk is a token object."""

    def __init__(
        self,
        client: Client,
        listing: Listing,
        tokenizer: Tokenizer,
        end: int | None,
        text_field: str,
        *,
        documents: bool,
    ) -> None:
        """Without `documents`, nobody may ask for them: their tables are not kept in memory."""
        self._listing = listing
        self._tokenizer = tokenizer
        self._end = end
        self._text_field = text_field
        self._chunks = Chunks(listing)
        options = tokenizer.name, str(end), text_field, str(_VERSION)
        self.identity = self.documents_identity = listing.files.digest("tokenised text", *options)
        self._names = [self._name(number, options) for number in range(len(self._chunks))]
        tables = self._done(client)
        self._tables = tables if documents else None
        heads = [_TABLE.unpack_from(table) for table in tables]
        self._widths = array("B", (width for width, _, _ in heads))
        wanted = [
            resolve.Wanted(f"{keys.DERIVED}tokens/{name}", width * count, digest.hex())
            for name, (width, count, digest) in zip(self._names, heads, strict=True)
        ]
        self._infos = derived.named(client, wanted)

    def __len__(self) -> int:
        return len(self._chunks)

    def info(self, number: int) -> ObjectInfo:
        return self._infos[number]

    def width(self, number: int) -> int:
        return self._widths[number]

    def count(self, number: int) -> int:
        return self._infos[number].size // self._widths[number]

    def again(self, client: Client, number: int, missing: NotFound) -> Buffer:
        """All bytes of a chunk that the cache has lost; put there again."""
        info = self._infos[number]
        if (data := derived.remembered(info.url)) is not None:
            return data
        made = derived.Content(_narrow(self._tokenised(client, number)[0]).tobytes())
        if made.etag != info.etag:
            name = self._tokenizer.name
            raise BadRequest(
                f"tokenizer {name!r}: other tokens of the same text than before; give it another name"
            ) from missing
        derived.put_or_remember(client, info, made.data)
        return made.data

    def documents(self) -> Documents:
        """Their tokens, in order. To be asked once: the tables are forgotten."""
        tables, self._tables = self._tables, None
        assert tables is not None
        found = Documents(self._listing.files)
        for number, table in enumerate(tables):
            rows = array("I", table[_TABLE.size :])
            places, counts = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            begin = 0
            for place, part in enumerate(self._chunks.parts(number)):
                end = bisect.bisect_right(places, place, begin)
                if end > begin:
                    found.add(number, part.file, counts[begin:end])
                begin = end
        return found

    # Made once

    def _name(self, number: int, options: tuple[str, ...]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for option in options:
            digest.update(len(option.encode()).to_bytes(8, "little") + option.encode())
        for part in self._chunks.parts(number):
            digest.update(self._listing.info(part.file).fingerprint)
            digest.update(struct.pack("<QQ", part.start, part.stop))
        return f"{_VERSION}/{digest.hexdigest()}"

    def _done(self, client: Client) -> list[bytes]:
        """Tables of all chunks: those of before, and of the others as they are tokenised."""
        names = [f"token-table/{name}" for name in self._names]
        found = derived.find_many(client, names)
        missing = [number for number, table in enumerate(found) if table is None]
        total = sum(part.stop - part.start for number in missing for part in self._chunks.parts(number))
        with Progress(f"tokenising {total >> 20} MiB of text", total) as progress:
            for number in missing:
                tokens, rows = self._tokenised(client, number, progress)
                narrow = _narrow(tokens)
                made = derived.Content(narrow.tobytes())
                url = f"{keys.DERIVED}tokens/{self._names[number]}"
                (info,) = derived.named(client, [resolve.Wanted(url, len(made.data), made.etag)])
                derived.put_or_remember(client, info, made.data)
                head = _TABLE.pack(narrow.itemsize, len(narrow), bytes.fromhex(made.etag))
                found[number] = derived.keep(client, names[number], head + rows)
        return [bytes(table) for table in found if table is not None]

    def _tokenised(self, client: Client, number: int, progress: Progress | None = None) -> tuple[array[int], bytes]:
        """(tokens, rows of the table) of a chunk."""
        tokens, places, counts = array("I"), array("I"), array("I")
        for place, part in enumerate(self._chunks.parts(number)):
            info = self._listing.info(part.file)
            for text in texts.documents(client, info, part.start, part.stop, self._text_field):
                before = len(tokens)
                try:
                    tokens.extend(self._tokenizer.encode(text))
                except Exception as error:
                    error.add_note(f"in tokenizer {self._tokenizer.name!r}, at document {len(counts)} of {info.url}")
                    raise
                if self._end is not None:
                    tokens.append(self._end)
                places.append(place)
                counts.append(len(tokens) - before)
            if progress is not None:
                progress.done(part.stop - part.start)
        return tokens, places.tobytes() + counts.tobytes()


def _narrow(tokens: array[int]) -> array[int]:
    """In two bytes each, if all fit."""
    return array("H", tokens) if max(tokens, default=0) < 1 << 16 else tokens
