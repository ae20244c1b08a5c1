"""Batches of files that are not copied: one `Views` for all of a batch, and the samples that share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from shoal.torch.formats.files import Files, Sample
from shoal.torch.views import Views, keep_sent, read_views
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client


class ViewedSamples(list[Sample]):
    """Samples whose `data` are views into one batch."""

    def __init__(self, samples: list[Sample], views: Views) -> None:
        super().__init__(samples)
        self.views = views


class Keeping:
    """A worker_init_fn: the worker keeps the leases of as many batches as may be on their way to the loop."""

    def __init__(self, then: Callable[[int], None] | None, prefetch_factor: int) -> None:
        self._then = then
        self._prefetch_factor = prefetch_factor

    def __call__(self, worker: int) -> None:
        keep_sent(self._prefetch_factor + 1)
        if self._then is not None:
            self._then(worker)


def viewed(files: Files, client: Client, numbers: Sequence[int]) -> ViewedSamples:
    """These samples, leased with one request."""
    names = files.listing.files
    views = read_views(client, [(info, 0, info.size) for info in files.listing.infos(client, numbers)])
    samples = [
        Sample(data=view, label=names.labels[number], path=names.name(number))
        for number, view in zip(numbers, views, strict=True)
    ]
    return ViewedSamples(samples, views)


def collate(samples: Any) -> dict[str, Any]:
    """{data: Views, label: int64 [batch], path: list}: what torch's collation makes of files, without copying them."""
    if not isinstance(samples, ViewedSamples):
        raise BadRequest("views: samples were changed on their way; collate them with a collate_fn of your own")
    return {
        "data": samples.views,
        "label": torch.tensor([sample["label"] for sample in samples]),
        "path": [sample["path"] for sample in samples],
    }
