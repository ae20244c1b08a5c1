"""The files of a data set, in the versions they had when it was made, with what is the same for all of them.

The origin is listed once; a process that gets the data set lists nothing and asks for no version again. A file that
was changed since is an error, not another sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from shoal.objects import ObjectInfo
from shoal.torch.file_table import File, FileTable
from shoal_core.errors import BadRequest, NotFound, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.torch.formats.interface import Source

_RESOLVED_AT_ONCE = 4096


class Listing:
    """A table of files, and the URL that they all lie below."""

    __slots__ = ("_block_size_bytes", "_origin", "files", "url")

    def __init__(self, url: str, files: FileTable, origin: str, block_size_bytes: int) -> None:
        self.url = url
        self.files = files
        self._origin = origin
        self._block_size_bytes = block_size_bytes
        """0: no file's version is known."""

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        """The file's whole URL."""
        return self.url + self.files.name(number)

    def source(self, number: int) -> Source:
        """A version of a file, or its URL where there was no listing."""
        return self.info(number) if self._block_size_bytes else self.name(number)

    def info(self, number: int) -> ObjectInfo:
        """A version of a file; only where versions are known."""
        name, size, etag, fingerprint = self.files[number]
        url = self.url + name
        origin = url if self._origin == self.url else self._origin + name
        return ObjectInfo(url, size, etag, fingerprint, self._block_size_bytes, origin)

    def infos(self, client: Client, numbers: Sequence[int]) -> list[ObjectInfo]:
        """Versions of files; where they are not known, those of now. The first error is raised."""
        if self._block_size_bytes:
            return [self.info(number) for number in numbers]
        return _found(client, [self.name(number) for number in numbers])


def listed(client: Client, url: str, suffixes: Sequence[str] | None) -> Listing:
    """All files below `url`, a folder, whose names end in one of the suffixes; NotFound when there is none."""
    endings = _endings(suffixes)
    origin, block_size_bytes = url, 0

    def files() -> Iterator[File]:
        # Page by page: a listing of ten million objects at once would be 4 GB of Python objects.
        nonlocal origin, block_size_bytes
        for found in itertools.chain.from_iterable(client.list_pages(url)):
            if not found.url.startswith(url):
                raise BadRequest(f"{url}: the origin spells it otherwise, as in {found.url}; use its spelling")
            name = found.url[len(url) :]
            if name.lower().endswith(endings):
                origin, block_size_bytes = found.origin.removesuffix(name), found.block_size_bytes
                yield File(name, found.size, found.etag, found.fingerprint)

    table = FileTable(files())
    return _not_empty(Listing(url, table, origin, block_size_bytes), endings)


def named(url: str, names: Iterable[str], suffixes: Sequence[str] | None) -> Listing:
    """The files of these names below `url`, in the version they have when they are read."""
    endings = _endings(suffixes)
    table = FileTable(File(name) for name in names if name.lower().endswith(endings))
    return _not_empty(Listing(url, table, url, 0), endings)


def resolved(client: Client, listing: Listing) -> Listing:
    """The same files in the versions that they have now."""
    infos = listing.infos(client, range(len(listing)))
    names = (listing.files.name(number) for number in range(len(listing)))
    files = (File(name, f.size, f.etag, f.fingerprint) for name, f in zip(names, infos, strict=True))
    origin = infos[0].origin.removesuffix(listing.files.name(0))
    return Listing(listing.url, FileTable(files), origin, infos[0].block_size_bytes)


def _found(client: Client, urls: Sequence[str]) -> list[ObjectInfo]:
    infos: list[ObjectInfo] = []
    for start in range(0, len(urls), _RESOLVED_AT_ONCE):
        for found in client.infos(urls[start : start + _RESOLVED_AT_ONCE]):
            if isinstance(found, ShoalError):
                raise found
            infos.append(found)
    return infos


def _endings(suffixes: Sequence[str] | None) -> tuple[str, ...]:
    return ("",) if suffixes is None else tuple(suffix.lower() for suffix in suffixes)


def _not_empty(listing: Listing, endings: tuple[str, ...]) -> Listing:
    if not len(listing):
        raise NotFound(f"{listing.url}: no file here" + (f" ends in {' or '.join(endings)}" if any(endings) else ""))
    return listing
