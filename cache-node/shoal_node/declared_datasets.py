"""Datasets that clients declared, kept in the state directory: their blocks on disk are known after a restart."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from shoal_node.spaces import Space

_NAME = "datasets.json"
log = logging.getLogger("shoal.node")


def save(directory: str | None, spaces: Iterable[Space]) -> None:
    """Replace the file as a whole. A directory that cannot be written costs warmth after a restart, nothing else."""
    if directory is None:
        return
    path = Path(directory) / _NAME
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(msgspec.json.encode(list(spaces)))
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s: declared datasets are not kept over a restart: %s", path, error.strerror or error)


def load(directory: str | None) -> list[Space]:
    """What was saved. An unreadable file is as good as none."""
    if directory is None:
        return []
    path = Path(directory) / _NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Space])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s: cannot be read, declared datasets are forgotten: %s", path, error)
        return []
