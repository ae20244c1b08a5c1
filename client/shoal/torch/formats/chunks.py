"""How text files are put together, or cut, into chunks of work of about one size. Flat buffers, whatever their number.

Files stay in their order. A file that can be cut (its lines are documents) goes into parts; any other is whole, however
large. Chunks follow from names and sizes before them alone, so files that are added behind change only the last.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from shoal.torch.formats import texts
from shoal.torch.formats.listing import Listing

CHUNK_BYTES = 32 << 20
"""Long enough that a chunk's own cost does not show, short enough that little is lost when a run is interrupted."""


class Part(NamedTuple):
    """A file, or the lines that begin in a part of it."""

    file: int
    start: int
    stop: int


class Chunks:
    """Each is some neighbouring parts."""

    __slots__ = ("_ends", "_files", "_starts", "_stops")

    def __init__(self, listing: Listing) -> None:
        self._files, self._starts, self._stops = array("I"), array("Q"), array("Q")
        self._ends = array("Q")
        """By chunk, the number of parts up to its end."""
        size = 0
        for part in _parts(listing):
            if size and size + part.stop - part.start > CHUNK_BYTES:
                self._ends.append(len(self._files))
                size = 0
            self._files.append(part.file)
            self._starts.append(part.start)
            self._stops.append(part.stop)
            size += part.stop - part.start
        if size:
            self._ends.append(len(self._files))

    def __len__(self) -> int:
        return len(self._ends)

    def parts(self, number: int) -> Iterator[Part]:
        for row in range(self._ends[number - 1] if number else 0, self._ends[number]):
            yield Part(self._files[row], self._starts[row], self._stops[row])


def _parts(listing: Listing) -> Iterator[Part]:
    """Empty files have none."""
    for file in range(len(listing)):
        name, length = listing.name(file), listing.files.size(file)
        texts.check_name(name)
        step = CHUNK_BYTES if texts.is_lines(name) else max(length, 1)
        for start in range(0, length, step):
            yield Part(file, start, min(start + step, length))
