"""From the flat listing that an origin gives to the directories that fsspec's callers expect.

Object stores have keys, not directories: a directory exists because a key has a slash. A listing through the node is
recursive, so one call tells every level below a path at once; `levels` cuts it into the per-directory lists that
fsspec's `DirCache` keeps. Pure: knows neither the client nor a file system's options.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Entry = dict[str, Any]
"""What fsspec's `info` returns. 'ETag' is the name that s3fs uses and that Hugging Face datasets keys its cache by."""


def file_entry(path: str, size: int, etag: str) -> Entry:
    return {"name": path, "size": size, "type": "file", "ETag": etag}


def directory_entry(path: str) -> Entry:
    return {"name": path, "size": 0, "type": "directory"}


def levels(root: str, files: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Directory to its entries, for `root` and every directory below it. The files' names must lie below `root`."""
    found: dict[str, list[Entry]] = {root: []}
    for entry in files:
        child = entry
        while True:
            above: str = child["name"].rpartition("/")[0]
            directory = above if len(above) > len(root) else root
            siblings = found.get(directory)
            if siblings is not None:
                siblings.append(child)
                break
            found[directory] = [child]
            child = directory_entry(directory)
    return found


def below(tree: Mapping[str, list[Entry]], root: str, depth_max: int | None) -> list[Entry]:
    """Every entry down to that depth, level by level. KeyError if the tree lacks a directory (it was forgotten)."""
    found: list[Entry] = []
    directories, depth = [root], 0
    while directories and (depth_max is None or depth < depth_max):
        entries = [entry for directory in directories for entry in tree[directory]]
        directories = [entry["name"] for entry in entries if entry["type"] == "directory"]
        found += entries
        depth += 1
    return found
