"""Sequences of tokens: windows of equal length over all kept documents, laid end to end in the order of their names.

Sample i has the tokens from i * L to (i + 1) * L, both included, of that concatenation: L + 1 of them, so that inputs
and targets are two slices of one tensor, and neighbours share one token. A window may reach over documents, files and
blocks. Nothing is copied together beforehand: a window is found by bisection in flat tables of runs, and read as the
one or more ranges it consists of. Where the tokens lie, files or the cache itself, is a `TokenSource`'s.
"""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import torch

from shoal.objects import ObjectInfo
from shoal.torch.formats import documents, interface
from shoal.torch.formats.documents import Documents, Filter
from shoal_core.errors import BadRequest, NotFound, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.derived import Buffer
    from shoal.torch.formats.interface import Place

_DTYPES = {2: "uint16", 4: "uint32"}
"""By name: torch has them from 2.3 on, and older ones read everything but tokens all the same."""


class TokenSample(TypedDict, total=False):
    """int64 tensors of L + 1, the caller's own."""

    tokens: torch.Tensor
    positions: torch.Tensor


class TokenSource(Protocol):
    """Objects full of tokens, in order."""

    @property
    def identity(self) -> str:
        """Digest of everything that decides the tokens."""
        ...

    @property
    def documents_identity(self) -> str:
        """Digest of everything that decides where documents begin."""
        ...

    def __len__(self) -> int: ...
    def info(self, number: int) -> ObjectInfo: ...
    def width(self, number: int) -> int:
        """Bytes of each token, 2 or 4."""
        ...

    def count(self, number: int) -> int:
        """Tokens."""
        ...

    def again(self, client: Client, number: int, missing: NotFound) -> Buffer:
        """All bytes of an object that was not found, if it can be made again; else that error is raised."""
        ...


class Tokens:
    """A `Format`."""

    def __init__(
        self,
        client: Client,
        url: str,
        source: TokenSource,
        found: Documents | None,
        length: int,
        *,
        positions: bool = False,
        chosen: Filter | None = None,
    ) -> None:
        """Documents must be given where positions are wanted or a filter chooses."""
        if length < 1:
            raise BadRequest(f"sequence_length: {length} is not above 0")
        self._source = source
        self._length = length
        self._run_objects, self._run_begins, self._run_ends = array("I"), array("Q"), array("Q")
        """Neighbouring kept tokens of one object: its number, their first in it, and the end in the concatenation."""
        self._document_begins = array("q")
        """In the concatenation; only where positions are wanted."""
        if found is not None:
            flags = documents.kept(client, found, source.documents_identity, chosen) if chosen is not None else None
            self._lay(found, flags, positions)
        else:
            for number in range(len(source)):
                self._add_run(number, 0, source.count(number))
        self._total = self._run_ends[-1] if self._run_ends else 0
        if not len(self):
            raise NotFound(f"{url}: {self._total} tokens, fewer than one sequence of {length} + 1 (sequence_length)")
        width = source.width(0)
        self.shuffle_block = max(1, source.info(0).block_size_bytes // (length * width))
        parts = [source.identity, str(length)]
        if chosen is not None:
            parts += [source.documents_identity, chosen.name]
        self.digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def _lay(self, found: Documents, flags: bytes | None, positions: bool) -> None:
        """Runs of kept documents."""
        latest, begin = -1, 0
        for token_object, numbers in found.objects():
            if token_object != latest:
                latest, begin = token_object, 0
            for number in numbers:
                count = found.counts[number]
                if flags is None or flags[number]:
                    if positions and count:
                        self._document_begins.append(self._run_ends[-1] if self._run_ends else 0)
                    self._add_run(token_object, begin, count)
                begin += count

    def _add_run(self, token_object: int, begin: int, count: int) -> None:
        if not count:
            return
        last = len(self._run_ends) - 1
        if last >= 0 and self._run_objects[last] == token_object and self._run_end(last) == begin:
            self._run_ends[last] += count
            return
        self._run_objects.append(token_object)
        self._run_begins.append(begin)
        self._run_ends.append((self._run_ends[-1] if self._run_ends else 0) + count)

    def __len__(self) -> int:
        return max(0, self._total - 1) // self._length

    def name(self, number: int) -> str:
        token_object, begin, _ = next(self._ranges(number))
        return f"{self._source.info(token_object).url}: tokens from {begin} on"

    def read(self, client: Client, numbers: Sequence[int]) -> list[Any]:
        pieces = [(place, *piece) for place, number in enumerate(numbers) for piece in self._ranges(number)]
        infos = {token_object: self._source.info(token_object) for _, token_object, _, _ in pieces}
        ranges: list[tuple[ObjectInfo, int, int | None]] = []
        for _, token_object, begin, count in pieces:
            width = self._source.width(token_object)
            ranges.append((infos[token_object], begin * width, count * width))
        made: dict[int, Buffer] = {}
        """Objects that were not found, once for all their pieces."""
        windows: list[list[torch.Tensor]] = [[] for _ in numbers]
        contents = client.read_many(ranges, return_errors=True)
        for (place, token_object, _, _), (_, offset, size), content in zip(pieces, ranges, contents, strict=True):
            if isinstance(content, NotFound):
                assert size is not None
                if token_object not in made:
                    made[token_object] = self._source.again(client, token_object, content)
                content = made[token_object][offset : offset + size]
            elif isinstance(content, ShoalError):
                raise content
            dtype: torch.dtype = getattr(torch, _DTYPES[self._source.width(token_object)])
            # A bytearray, because torch warns of memory that must not be written to.
            tokens = torch.frombuffer(bytearray(content), dtype=dtype)
            windows[place].append(tokens.to(torch.int64))
        return [self._sample(number, window) for number, window in zip(numbers, windows, strict=True)]

    def _sample(self, number: int, window: list[torch.Tensor]) -> TokenSample:
        sample = TokenSample(tokens=window[0] if len(window) == 1 else torch.cat(window))
        if self._document_begins:
            begins = torch.frombuffer(self._document_begins, dtype=torch.int64)
            places = torch.arange(number * self._length, (number + 1) * self._length + 1)
            sample["positions"] = places - begins[torch.searchsorted(begins, places, right=True) - 1]
        return sample

    def places(self, client: Client, numbers: Sequence[int]) -> list[list[Place]]:
        found: list[list[Place]] = []
        for number in numbers:
            blocks: list[Place] = []
            for token_object, begin, count in self._ranges(number):
                width = self._source.width(token_object)
                blocks += interface.blocks_of(self._source.info(token_object), begin * width, count * width)
            found.append(blocks)
        return found

    def shares(self, number: int) -> range:
        run = bisect.bisect_right(self._run_ends, number * self._length)
        token_object = self._run_objects[run]
        width, size = self._source.width(token_object), self._source.info(token_object).block_size_bytes
        token = self._run_begins[run] + number * self._length - self._run_offset(run)
        block = token * width // size
        begin, end = -(-block * size // width), -(-(block + 1) * size // width)
        first = last = run
        while first and self._run_objects[first - 1] == token_object and self._run_end(first - 1) > begin:
            first -= 1
        while (
            last + 1 < len(self._run_ends)
            and self._run_objects[last + 1] == token_object
            and self._run_begins[last + 1] < end
        ):
            last += 1
        low = self._run_offset(first) + max(0, begin - self._run_begins[first])
        high = self._run_offset(last) + min(end, self._run_end(last)) - self._run_begins[last]
        return range(-(-low // self._length), min(len(self), -(-high // self._length)))

    def _run_offset(self, run: int) -> int:
        """Where it begins in the concatenation."""
        return self._run_ends[run - 1] if run else 0

    def _run_end(self, run: int) -> int:
        """Where it ends in its object."""
        return self._run_begins[run] + self._run_ends[run] - self._run_offset(run)

    def _ranges(self, number: int) -> Iterator[tuple[int, int, int]]:
        """(object, first token in it, count) of each piece of a window."""
        begin, end = number * self._length, (number + 1) * self._length + 1
        run = bisect.bisect_right(self._run_ends, begin)
        while begin < end:
            count = min(end, self._run_ends[run]) - begin
            yield self._run_objects[run], self._run_begins[run] + begin - self._run_offset(run), count
            begin += count
            run += 1

    def __repr__(self) -> str:
        return (
            f"{len(self)} sequences of {self._length} + 1 tokens, {self._total} tokens in {len(self._source)} objects"
        )
