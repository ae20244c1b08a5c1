"""Documents of a token data set: how many tokens each has, and which are kept.

A filter is asked once for every document. What it said is kept in the cache as a derived object, under the identity of
the documents and the filter's name, so a filter that decides otherwise needs another name.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from shoal import derived
from shoal.torch.formats.progress import Progress
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.torch.file_table import FileTable

_VERSION = 1
_REPORTED_EVERY = 10_000


class Document(NamedTuple):
    """What a filter decides by."""

    path: str
    """Of the file it stands in, below the data set's URL."""
    token_count: int


class Filter(NamedTuple):
    """Which documents are kept."""

    keep: Callable[[Document], bool]
    name: str
    """Stands for what `keep` decides, wherever that is remembered: another decision, another name."""


class Documents:
    """All documents in order, in flat buffers. Neighbours of one file and one token object are a group."""

    __slots__ = ("_files", "counts", "groups")

    def __init__(self, files: FileTable) -> None:
        self._files = files
        self.counts = array("Q")
        """Tokens of each document."""
        self.groups: tuple[array[int], array[int], array[int]] = array("I"), array("I"), array("Q")
        """By group: the token object's number, the file's number, how many documents."""

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, token_object: int, file: int, counts: array[int]) -> None:
        """A group, behind those before it."""
        for column, value in zip(self.groups, (token_object, file, len(counts)), strict=True):
            column.append(value)
        self.counts.extend(counts if counts.typecode == "Q" else array("Q", counts))

    def objects(self) -> Iterator[tuple[int, range]]:
        """(token object, numbers of its documents in this group), group by group."""
        begin = 0
        for token_object, _, count in zip(*self.groups, strict=True):
            yield token_object, range(begin, begin + count)
            begin += count

    def each(self) -> Iterator[Document]:
        number = 0
        for _, file, count in zip(*self.groups, strict=True):
            path = self._files.name(file)
            for _ in range(count):
                yield Document(path, self.counts[number])
                number += 1


def kept(client: Client, documents: Documents, identity: str, chosen: Filter) -> bytes:
    """A byte for each document, 1 if it is kept. Asked of the filter once, then kept in the cache."""
    digest = hashlib.blake2b(identity.encode() + b"\0" + chosen.name.encode(), digest_size=16).hexdigest()
    flags = derived.load(client, f"documents-kept/{_VERSION}/{digest}", lambda: _asked(documents, chosen))
    if len(flags) != len(documents):
        raise BadRequest(f"filter {chosen.name!r}: was asked for {len(flags)} documents before, now {len(documents)}")
    return bytes(flags)


def _asked(documents: Documents, chosen: Filter) -> bytes:
    flags = bytearray()
    with Progress(f"filtering {len(documents)} documents", len(documents)) as progress:
        for document in documents.each():
            try:
                flags.append(bool(chosen.keep(document)))
            except Exception as error:
                error.add_note(f"in filter {chosen.name!r}, at {document}")
                raise
            if len(flags) % _REPORTED_EVERY == 0:
                progress.done(_REPORTED_EVERY)
    return bytes(flags)
