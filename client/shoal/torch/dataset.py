"""A map-style data set below a URL: files, WebDataset shards or tokens, each batch read with one request.

What the bytes mean is a format's (`formats`): the data set makes it once, with the options of that format, reads a
batch through it (`__getitems__`, which torch's loader calls) and applies the user's transform. The connection is each
process's own, so a data set may be forked and pickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import torch.utils.data

from shoal import shared_client
from shoal.torch import batches, waiting
from shoal.torch.formats import listing, token_options, webdataset
from shoal.torch.formats.files import Files, Sample
from shoal.torch.formats.interface import Format, Place, Source
from shoal.torch.formats.names import chosen
from shoal.torch.formats.token_options import TokenOptions
from shoal.torch.formats.webdataset import WebDataset
from shoal.torch.iterable import IterableSamples
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client

__all__ = ["Dataset", "Sample"]

_FORMATS = "files", "webdataset", "tokens"
_SUFFIXES = {"webdataset": webdataset.SUFFIXES}
"""By format: the files that are looked for when nobody says which."""


class Dataset(torch.utils.data.Dataset[Any]):
    """All samples below `url`, in the order of their files' names. A path on this machine will do.

    `format` is one of
    - `files`: each file is a sample, `{data, label, path}`; `classes` are the folders directly below the URL.
      `transform` gets the file's bytes and its result becomes `data`.
    - `webdataset`: files are tar shards; a sample is `{__key__, __url__, jpg, cls, ...}`, each extension's bytes under
      its name. `transform` gets the whole sample.
    - `tokens`: files are token ids (`.bin`), or text with a `tokenizer`; sample i is `{tokens}`, the L + 1 ids from
      i * L on of all documents end to end. `transform` gets the whole sample. Options: `TokenOptions`.

    `suffixes` keeps only files whose names end so (upper or lower case). `names` replaces the listing, also where an
    origin cannot list, such as a web server: paths below `url`, or a pattern such as `shard-{000..099}.tar`. Without
    `client`, each process uses the one that `shoal.connect()` gives it.

    With `views=True` the data of `files` is not copied: a sample's `data` is a `shoal.View`, a batch's is a
    `shoal.torch.Views`, which workers hand over as references and `pin_memory=True` lets a GPU read where they lie.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        format: str = "files",  # noqa: A002 the word users expect
        transform: Callable[[Any], Any] | None = None,
        suffixes: Sequence[str] | None = None,
        names: str | Iterable[str] | None = None,
        views: bool = False,
        client: Client | None = None,
        **options: Unpack[TokenOptions],
    ) -> None:
        self.url = _url_of(url).rstrip("/") + "/"
        self.format = format
        self.transform = transform
        self.views = views
        if views and (format != "files" or transform is not None):
            raise BadRequest("views: only files have them, and no transform: what it makes is memory of its own")
        self._own_client = client
        if client is not None:
            shared_client.offer(client)  # to views that arrive from workers
        self._samples = self._made(suffixes, names, options)

    def _made(self, suffixes: Sequence[str] | None, names: str | Iterable[str] | None, options: TokenOptions) -> Format:
        if self.format not in _FORMATS:
            raise BadRequest(f"format: {self.format!r} is none of {', '.join(_FORMATS)}")
        token_options.check(self.format, options)
        if suffixes is None and names is None:
            suffixes = token_options.suffixes(options) if self.format == "tokens" else _SUFFIXES.get(self.format)
        if names is None:
            found = listing.listed(self.client, self.url, suffixes)
        else:
            found = listing.named(self.url, chosen(names), suffixes)
        if self.format == "files":
            return Files(found)
        found = listing.resolved(self.client, found)
        if self.format == "webdataset":
            return WebDataset(self.client, found)
        return token_options.made(self.client, found, options)

    # What a loader asks

    @property
    def digest(self) -> str:
        """Names what every sample number means: files, versions and the options that number them; 32 hex digits."""
        return self._samples.digest

    @property
    def shuffle_block(self) -> int:
        """Samples in one cache block on average, at least 1: how many it pays to read together."""
        return self._samples.shuffle_block

    def places(self, numbers: Sequence[int]) -> list[list[Place]]:
        """For each sample, the blocks it lies in: (object, first block, count of blocks)."""
        return self._samples.places(self.client, self._positions(numbers))

    def shares(self, number: int) -> range:
        """The samples that begin in the same block as this one."""
        return self._samples.shares(self._positions([number])[0])

    # Samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """A batch, read with one request."""
        positions = self._positions(numbers)
        client = self.client
        with waiting.reading(client):
            if self.views:
                return batches.viewed(self._files(), client, positions)
            samples = self._samples.read(client, positions)
        if self.transform is None:
            return samples
        with waiting.decoding():
            return [self._transformed(position, sample) for position, sample in zip(positions, samples, strict=True)]

    def iterable(self, batch_size: int = 64, order: Iterable[int] | None = None) -> IterableSamples:
        """The samples as a stream, `batch_size` of them read with one request; give the loader the same one."""
        return IterableSamples(self, batch_size, order)

    def __repr__(self) -> str:
        return f"<Dataset {self.url!r}: {self._samples!r}>"

    # Files

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders directly below the URL; a label is a position in it."""
        return self._files().listing.files.classes

    def path(self, number: int) -> str:
        """Path of a sample's file, below the URL."""
        return self._files().listing.files.name(number)

    def label(self, number: int) -> int:
        return self._files().listing.files.labels[number]

    def source(self, number: int) -> Source:
        """What a sample is read from: a version of an object, or its URL where there was no listing."""
        return self._files().listing.source(number)

    # Inside

    @property
    def client(self) -> Client:
        """The connection of this process."""
        return self._own_client or shared_client.get()

    def _files(self) -> Files:
        if not isinstance(self._samples, Files):
            raise AttributeError(f"a data set of format {self.format!r} has no classes, labels and paths")
        return self._samples

    def _positions(self, numbers: Sequence[int]) -> list[int]:
        count = len(self._samples)
        for number in numbers:
            if not -count <= number < count:
                raise IndexError(f"sample {number} of a data set of {count}")
        return [number % count for number in numbers]

    def _transformed(self, number: int, sample: Any) -> Any:
        assert self.transform is not None
        try:
            if self.format != "files":
                return self.transform(sample)
            sample["data"] = self.transform(sample["data"])
            return sample
        except Exception as error:
            error.add_note(f"in the transform of {self._samples.name(number)}")
            raise


def _url_of(url: str | os.PathLike[str]) -> str:
    text = os.fspath(url)
    if isinstance(url, os.PathLike) or text.startswith(("/", "./", "../", "~")):
        return f"file://{os.path.abspath(os.path.expanduser(text))}"
    return text
