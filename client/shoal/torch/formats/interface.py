"""What a format of data set must be able to do: number its samples, and say where each lies and how it is read.

A format is made once, where the data set is made, and from then on never changes: sample number n is the same in every
process that it is sent to, and `digest` names what was numbered. It holds flat buffers (never a Python object per
sample), pickles as those, and holds no connection: whoever calls gives a client of its own process. It knows nothing of
order, ranks or epochs; a loader asks `places`, `shares` and `shuffle_block` to keep its reads together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from shoal.objects import ObjectInfo

if TYPE_CHECKING:
    from shoal.client import Client

Source = str | ObjectInfo
"""What a sample is read from: an object in one version, or a URL where the version was not asked for."""

Place = tuple[ObjectInfo, int, int]
"""(object, number of the first block, count of blocks)."""


class Format(Protocol):
    """All samples of one data set."""

    @property
    def digest(self) -> str:
        """32 hexadecimal digits: equal where every number means the same sample. Made of the files' names, sizes and
        versions, and of the options that decide which sample has which number."""
        ...

    @property
    def shuffle_block(self) -> int:
        """Samples in one cache block on average, at least 1."""
        ...

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """The sample for messages: what it is read from."""
        ...

    def read(self, client: Client, numbers: Sequence[int]) -> list[Any]:
        """These samples (numbers from 0 on), in this order, read with one request."""
        ...

    def places(self, client: Client, numbers: Sequence[int]) -> list[list[Place]]:
        """For each number, the blocks that its sample lies in, in the order of its bytes; none for an empty one."""
        ...

    def shares(self, number: int) -> range:
        """Numbers of the samples that begin in the same block as this one, itself among them."""
        ...


def blocks_of(info: ObjectInfo, offset: int, length: int) -> list[Place]:
    """The place of a range that lies inside the object."""
    if not length:
        return []
    first = offset // info.block_size_bytes
    return [(info, first, (offset + length - 1) // info.block_size_bytes - first + 1)]
