"""Each file is a sample, labelled by the folder it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from shoal.torch.formats import interface
from shoal.torch.formats.listing import Listing

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.torch.formats.interface import Place


class Sample(TypedDict):
    """torch's default collation makes of a batch: whatever `data` collates to, a tensor of labels, a list of paths."""

    data: Any
    """The file's bytes, or what the transform made of them. Bytes do not collate: give a transform or a collate_fn."""
    label: int
    """Position of the file's first folder in `Dataset.classes`; -1 for a file that lies in no folder."""
    path: str
    """Below the data set's URL."""


class Files:
    """A `Format`."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.digest = listing.files.digest("files")
        self.shuffle_block = 1

    def __len__(self) -> int:
        return len(self.listing)

    def name(self, number: int) -> str:
        return self.listing.name(number)

    def read(self, client: Client, numbers: Sequence[int]) -> list[Any]:
        sources = [self.listing.source(number) for number in numbers]
        contents = client.read_many(sources)
        labels, above = self.listing.files.labels, len(self.listing.url)
        return [
            Sample(data=content, label=labels[number], path=(source if isinstance(source, str) else source.url)[above:])
            for number, source, content in zip(numbers, sources, contents, strict=True)
        ]

    def places(self, client: Client, numbers: Sequence[int]) -> list[list[Place]]:
        return [interface.blocks_of(info, 0, info.size) for info in self.listing.infos(client, numbers)]

    def shares(self, number: int) -> range:
        return range(number, number + 1)

    def __repr__(self) -> str:
        return f"{len(self)} files in {len(self.listing.files.classes)} classes"
