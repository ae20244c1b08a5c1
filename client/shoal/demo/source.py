"""Where the demonstration's images come from, and whether they can be trained on.

A source is images in class folders: a directory, the URL of one (s3://, gs://, az://, file://), or the http(s) URL of a
text file that names one image per line, relative to itself, because a web server cannot be listed. Whatever else is
given is refused with what was found there.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from shoal import errors
from shoal.torch import Dataset

if TYPE_CHECKING:
    from shoal.client import Client

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def open_dataset(source: str, client: Client) -> Dataset:
    """Every file of the source, images or not."""
    if "://" not in source:
        folder = Path(source).expanduser().absolute()
        if not folder.is_dir():
            raise errors.NotFound(f"{folder}: no such directory")
        return Dataset(f"file://{folder}", client=client)
    if not source.startswith(("http://", "https://")):
        return Dataset(source, client=client)
    base, _, name = source.rpartition("/")
    if not name.endswith(".txt"):
        raise errors.BadRequest(
            f"{source}: a web server cannot be listed: give the URL of a .txt file with one image per line"
        )
    lines = client.read(source).decode().splitlines()
    return Dataset(base, names=[line.strip() for line in lines if line.strip()], client=client)


def images(dataset: Dataset) -> list[int]:
    """Numbers of the samples that are images in a class folder. Raises if they do not make a classification task."""
    suffixes = [PurePosixPath(dataset.path(number)).suffix.lower() for number in range(len(dataset))]
    found = [n for n, suffix in enumerate(suffixes) if suffix in IMAGE_SUFFIXES and dataset.label(n) >= 0]
    classes = {dataset.label(number) for number in found}
    if len(classes) > 1:
        return found
    kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in Counter(suffixes).most_common(5))
    where = f"{len(found):,} of them images in {len(classes)} class folder{'s' if len(classes) != 1 else ''}"
    raise errors.BadRequest(
        f"{dataset.url}: expected images in at least two class folders, such as {dataset.url}cat/1.png; found"
        f" {len(dataset):,} files ({kinds}), {where}; the first is {dataset.path(0)}"
    )
