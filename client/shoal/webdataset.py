"""WebDataset reads its shards through the cache: `import shoal.webdataset`, and put `shoal+` before the scheme.

Importing this module adds our schemes (see `host_urls`) to WebDataset's own table, `webdataset.gopen_schemes`; every
other URL, `pipe:` among them, is opened as before. A shard is streamed: read from its start to its end in one version,
with the node filling ahead, and never copied to a file. Writing is refused: Shoal only reads.

A spawned worker imports what unpickling asks for, and not what its parent had imported. So the pickles of WebDataset's
pipelines and shard lists, made in a process that has this module, name it: whoever loads one has our schemes too. That
is done through `copyreg`, which also holds for forkserver, and changes nothing about the objects themselves.
"""

from __future__ import annotations

import copyreg
from typing import Any

import webdataset  # pyright: ignore[reportMissingImports] - not a dependency of ours: it is its users who import this

from shoal import shared_client
from shoal.file import BufferedShoalFile, open_binary
from shoal.host_urls import SCHEMES, node_url

BUFFER_BYTES = 1 << 20
"""tarfile reads a stream in pieces of 10 KiB and a sample's file at once: this makes a hit of a hundred such pieces,
and whatever is larger goes past the buffer."""


def open_shard(url: str, mode: str = "rb", bufsize: int = BUFFER_BYTES, **_: Any) -> BufferedShoalFile:
    """A handler of `webdataset.gopen`. `bufsize` can only raise the size of the buffer: gopen says 8 KiB if not asked.

    Raises NotFound, Forbidden, OriginError, DeadlineExceeded; BadRequest for modes that write. All name the URL.
    """
    return open_binary(shared_client.get(), node_url(url), mode, buffer_bytes=max(bufsize, BUFFER_BYTES))


def register() -> None:
    """Add our schemes to WebDataset's table, and to what its pickles bring along. Done by importing this module."""
    for scheme in SCHEMES:
        webdataset.gopen_schemes[scheme] = open_shard
    for kind in (
        webdataset.DataPipeline,
        webdataset.WebDataset,
        webdataset.SimpleShardList,
        webdataset.ResampledShards,
        webdataset.MultiShardSample,
    ):
        copyreg.pickle(kind, _reduce)


def _reduce(stage: Any) -> tuple[Any, ...]:
    """As `object` pickles itself, but by way of a function of this module."""
    return _new, (type(stage),), stage.__getstate__()


def _new(kind: type[Any]) -> Any:
    return object.__new__(kind)


register()
