"""A map-style data set: the files below a URL, each a sample, labelled by the folder it lies in.

The origin is listed once, where the data set is made, and that fixes which versions of which files the data set is:
workers get the table of them (`file_table`), list nothing and ask for no version again; a file that was changed since
is an error, not another sample. A batch is one request to the node (`__getitems__`, which torch's loader calls). The
connection is each process's own, so a data set may be forked and pickled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch.utils.data

from shoal import shared_client
from shoal.objects import ObjectInfo
from shoal.torch.file_table import File, FileTable
from shoal_core.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from shoal.client import Client


class Sample(TypedDict):
    """torch's default collation makes of a batch: whatever `data` collates to, a tensor of labels, a list of paths."""

    data: Any
    """The file's bytes, or what the transform made of them. Bytes do not collate: give a transform or a collate_fn."""
    label: int
    """Position of the file's first folder in `Dataset.classes`; -1 for a file that lies in no folder."""
    path: str
    """Below the data set's URL."""


class Dataset(torch.utils.data.Dataset[Sample]):
    """All files below `url`, in the order of their names; `classes` are the folders directly below it.

    `suffixes` keeps only names that end so (upper or lower case). `names` replaces the listing where an origin cannot
    list, such as a web server: paths below `url`, read in the version they have then. Without `client`, each process
    uses the one that `shoal.connect()` gives it.
    """

    def __init__(
        self,
        url: str,
        *,
        transform: Callable[[bytes], Any] | None = None,
        suffixes: Sequence[str] | None = None,
        names: Iterable[str] | None = None,
        client: Client | None = None,
    ) -> None:
        self.url = self._origin = url.rstrip("/") + "/"
        self.transform = transform
        self._own_client = client
        self._block_size_bytes = 0
        endings = ("",) if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
        files = self._listing() if names is None else map(File, names)
        self._files = FileTable(file for file in files if file.name.lower().endswith(endings))
        if not len(self._files):
            raise NotFound(f"{self.url}: no file here" + (f" ends in {' or '.join(endings)}" if suffixes else ""))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the folders directly below the URL; a label is a position in it."""
        return self._files.classes

    def path(self, number: int) -> str:
        """Path of a sample's file, below the URL."""
        return self._files.name(number)

    def label(self, number: int) -> int:
        return self._files.labels[number]

    def source(self, number: int) -> str | ObjectInfo:
        """What a sample is read from: a version of an object, or its URL where there was no listing."""
        file = self._files[number]
        url = self.url + file.name
        if not self._block_size_bytes:
            return url
        return ObjectInfo(url, file.size, file.etag, file.fingerprint, self._block_size_bytes, self._origin + file.name)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Sample:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        """A batch, read with one request."""
        count = len(self._files)
        for number in numbers:
            if not -count <= number < count:
                raise IndexError(f"sample {number} of a data set of {count}")
        positions = [number % count for number in numbers]
        contents = self._client.read_many([self.source(position) for position in positions])
        return [self._sample(position, content) for position, content in zip(positions, contents, strict=True)]

    def __repr__(self) -> str:
        return f"<Dataset {self.url!r}: {len(self)} files in {len(self.classes)} classes>"

    @property
    def _client(self) -> Client:
        return self._own_client or shared_client.get()

    def _sample(self, number: int, content: bytes) -> Sample:
        path = self._files.name(number)
        data = content
        if self.transform is not None:
            try:
                data = self.transform(content)
            except Exception as error:
                error.add_note(f"in the transform of {self.url}{path}")
                raise
        return Sample(data=data, label=self._files.labels[number], path=path)

    def _listing(self) -> Iterable[File]:
        # Page by page: a listing of ten million objects at once would be 4 GB of Python objects.
        for found in itertools.chain.from_iterable(self._client.list_pages(self.url)):
            if not found.url.startswith(self.url):
                raise BadRequest(f"{self.url}: the origin spells it otherwise, as in {found.url}; use its spelling")
            name = found.url[len(self.url) :]
            self._origin = found.origin.removesuffix(name)
            self._block_size_bytes = found.block_size_bytes
            yield File(name, found.size, found.etag, found.fingerprint)
