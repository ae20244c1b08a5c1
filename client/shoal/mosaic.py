"""MosaicML Streaming downloads its shards through the cache: `import shoal.mosaic`, and put `shoal+` before the scheme.

Importing this module adds a `CloudDownloader` for our schemes (see `host_urls`) to Streaming's own table; then
`StreamingDataset(remote="shoal+s3://bucket/prefix", local=...)` reads what MDSWriter wrote there. Streaming reads
shards only from files of its own, so there is a second copy of the data on the local disk, below `local`: it has its
own limit (`cache_limit`), and a shard that is there is not asked of the cache again. What the cache saves is the
origin: for other processes, machines and runs, and after `local` was cleaned.

A file appears under its name only when it is whole. Bytes go from the node's memory to the file with one copy. A
downloader holds nothing, so it may be pickled: a spawned worker that loads one imports this module by that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from streaming.base.storage import (  # pyright: ignore[reportMissingImports] - its users have it
    CloudDownloader,
    download,
)

from shoal import shared_client
from shoal.host_urls import SCHEMES, node_url
from shoal_core.errors import DeadlineExceeded

if TYPE_CHECKING:
    from io import FileIO

BLOCKS_AT_ONCE = 4
"""Blocks in one request to the node, which fills them together: as much is lent, or held in memory, at a time."""


class ShoalDownloader(CloudDownloader):
    """Streaming makes these itself, one per stream."""

    @staticmethod
    def _client_identifier() -> str:
        return "shoal"

    def _validate_remote_path(self, remote: str) -> None:
        node_url(remote)

    def _download_file_impl(self, remote: str, local: str, timeout: float) -> None:
        """Raises NotFound, Forbidden, OriginError, ObjectChanged; DeadlineExceeded after `timeout` seconds in all."""
        # A name of its own: two processes may fetch the same file, and each must rename a whole one.
        partial = f"{local}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            with open(partial, "wb", buffering=0) as file:
                _copy(node_url(remote), file, timeout)
            os.rename(partial, local)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise

    def clean_up(self) -> None:
        """Nothing to end: the connection is the process's, shared by all downloaders."""


def _copy(url: str, file: FileIO, timeout_s: float) -> None:
    client, end = shared_client.get(), time.monotonic() + timeout_s

    def left_s() -> float:
        if (left := end - time.monotonic()) <= 0:
            raise DeadlineExceeded(f"{url}: not downloaded within {timeout_s} s")
        return left

    info = client.info(url, deadline_s=left_s())  # every read names this version: no file is a mix of two
    step = BLOCKS_AT_ONCE * info.block_size_bytes
    for offset in range(0, info.size, step):
        with client.view(info, offset, step, deadline_s=left_s()) as view:
            for part in view.parts:
                rest = part
                while rest:
                    rest = rest[file.write(rest) :]  # one write takes 2 GiB at most, and less on a full disk


def register() -> None:
    """Add our schemes to Streaming's table. Done by importing this module."""
    for scheme in SCHEMES:
        download.DOWNLOADER_MAPPINGS[scheme] = ShoalDownloader


register()
