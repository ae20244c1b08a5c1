"""WebDataset shards with random access: samples are runs of members of tar files, found by an index of each shard.

An index is built once, from the shard's headers as they are read through the cache, and kept there as a derived object
under the shard's fingerprint; whoever comes next reads a few kilobytes per shard instead. Samples are numbered in the
order of the shards' names, then in the order in which they lie. Reading a sample reads exactly its members' bytes.
"""

from __future__ import annotations

import bisect
import contextlib
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from shoal import derived
from shoal.objects import ObjectInfo
from shoal.torch.formats import interface, shard_index, tar
from shoal.torch.formats.listing import Listing
from shoal.torch.formats.progress import Progress
from shoal.torch.formats.shard_index import ShardIndex
from shoal_core.errors import NotFound, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.torch.formats.interface import Place

SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""What is looked for. Compressed ones are refused by name rather than overlooked."""

_SHARDS_AT_ONCE = 8
_AHEAD_BLOCKS = 8
"""Asked for while headers of the block before them are read: most members are smaller than a block."""


class WebDataset:
    """A `Format` over shards whose versions are known."""

    def __init__(self, client: Client, listing: Listing) -> None:
        self._listing = listing
        self._indexes = _indexes(client, listing)
        self._ends = array("Q")
        for index in self._indexes:
            self._ends.append((self._ends[-1] if self._ends else 0) + len(index))
        if not len(self):
            raise NotFound(f"{listing.url}: {len(listing)} shards without a single sample")
        blocks = sum(max(1, -(-info.size // info.block_size_bytes)) for info in map(listing.info, range(len(listing))))
        self.shuffle_block = max(1, len(self) // blocks)
        self.digest = listing.files.digest("webdataset", str(shard_index.VERSION))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, number: int) -> str:
        shard, inside = self._locate(number)
        return f"{self._listing.name(shard)}: {self._indexes[shard].key(inside)}"

    def read(self, client: Client, numbers: Sequence[int]) -> list[Any]:
        infos: dict[int, ObjectInfo] = {}
        ranges: list[tuple[ObjectInfo, int, int | None]] = []
        places: list[tuple[dict[str, Any], str]] = []
        samples: list[Any] = []
        for number in numbers:
            shard, inside = self._locate(number)
            if (info := infos.get(shard)) is None:
                info = infos[shard] = self._listing.info(shard)
            sample: dict[str, Any] = {"__key__": self._indexes[shard].key(inside), "__url__": info.url}
            samples.append(sample)
            for part in self._indexes[shard].parts(inside):
                ranges.append((info, part.offset, part.size))
                places.append((sample, part.extension))
        for (sample, extension), content in zip(places, client.read_many(ranges), strict=True):
            sample[extension] = content
        return samples

    def places(self, client: Client, numbers: Sequence[int]) -> list[list[Place]]:
        found: list[list[Place]] = []
        for number in numbers:
            shard, inside = self._locate(number)
            index = self._indexes[shard]
            begin, end = index.begin(inside), index.end(inside)
            found.append(interface.blocks_of(self._listing.info(shard), begin, end - begin))
        return found

    def shares(self, number: int) -> range:
        shard, inside = self._locate(number)
        index, size = self._indexes[shard], self._listing.info(shard).block_size_bytes
        before = self._ends[shard] - len(index)
        block = index.begin(inside) // size
        first = bisect.bisect_left(range(len(index)), block * size, key=index.begin)
        return range(
            before + first, before + bisect.bisect_left(range(len(index)), (block + 1) * size, first, key=index.begin)
        )

    def _locate(self, number: int) -> tuple[int, int]:
        """(shard, number of the sample in it)."""
        shard = bisect.bisect_right(self._ends, number)
        return shard, number - (self._ends[shard] - len(self._indexes[shard]))

    def __repr__(self) -> str:
        return f"{len(self)} samples in {len(self._listing)} shards"


def _indexes(client: Client, listing: Listing) -> list[ShardIndex]:
    """Of every shard, kept ones read and the others built."""
    infos = [listing.info(shard) for shard in range(len(listing))]
    names = [f"webdataset-index/{shard_index.VERSION}/{info.fingerprint.hex()}" for info in infos]
    found = [ShardIndex(data) if data is not None else None for data in derived.find_many(client, names)]
    missing = [shard for shard, index in enumerate(found) if index is None]
    if missing:
        total = sum(infos[shard].size for shard in missing)
        with (
            Progress(f"indexing {len(missing)} shards", total) as progress,
            ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool,
        ):

            def build(shard: int) -> ShardIndex:
                index = _built(client, infos[shard], progress)
                derived.keep(client, names[shard], index.data)
                return index

            tasks = [pool.submit(build, shard) for shard in missing]
            try:
                for shard, task in zip(missing, tasks, strict=True):
                    found[shard] = task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [index for index in found if index is not None]


def _built(client: Client, info: ObjectInfo, progress: Progress) -> ShardIndex:
    headers = _Headers(client, info, progress)
    index = shard_index.build(tar.members(headers.read, info.size, info.url), info.url)
    headers.finish()
    return index


class _Headers:
    """Reads a shard's headers block by block, and asks for the blocks behind."""

    def __init__(self, client: Client, info: ObjectInfo, progress: Progress) -> None:
        self._client = client
        self._info = info
        self._progress = progress
        self._begin = 0
        self._block = b""
        self._reported = 0

    def read(self, offset: int, length: int) -> bytes:
        start = offset - self._begin
        if start < 0 or start + length > len(self._block):
            size = self._info.block_size_bytes
            begin = offset // size * size
            if begin == self._begin + len(self._block):
                with contextlib.suppress(ShoalError):  # it is only advice
                    self._client.prefetch(self._info, begin, (1 + _AHEAD_BLOCKS) * size)
            end = max(offset + length, begin + size)
            self._block = self._client.read(self._info, begin, end - begin)
            self._begin, start = begin, offset - begin
            self._progress.done(begin - self._reported)
            self._reported = begin
        return self._block[start : start + length]

    def finish(self) -> None:
        self._progress.done(self._info.size - self._reported)
