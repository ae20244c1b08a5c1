"""How long does a job wait for its first batch when it resumes in the middle of an epoch of a million samples?

From the loader's constructor, with the state loaded, to the first batch. Ours computes where it is; the reference is
torch's own loader with the same batches, which has to draw and read all batches before that place again. The samples
are numbers, so that the reference pays for nothing but its loop. Beside it a data set of a million names, of which the
ones that come next are files, read through a node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.utils.data

import shoal
import shoal.torch
from shoal_bench import epochs, pairs, places
from shoal_bench.report import Report
from shoal_core.limits import KIB, MIB

COUNT = 1_000_000
BATCH = 256
FILE_BYTES = 4 * KIB
_READABLE = 8 * 1024
"""Files from the place of resumption on: the batch, and what the node is told to read ahead."""


class Numbers(torch.utils.data.Dataset[int]):
    """The sample is its number."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> int:
        return number


def run(report: Report) -> None:
    """Two rows."""
    where = COUNT // 2 // BATCH * BATCH
    data = Numbers()
    state = _loader(data).state_dict() | {"position": where}
    wanted = _loader(data).order(0)
    first: list[int] = []

    def ours() -> None:
        first[:] = _first(data, state).tolist()

    def skipping() -> None:
        generator = torch.Generator().manual_seed(1)
        loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, generator=generator)
        batches = iter(loader)
        for _ in range(where // BATCH + 1):
            next(batches)

    pair = pairs.compare(pairs.timed(ours), pairs.timed(skipping), 3)
    assert first == [wanted.items(position) for position in range(where, where + BATCH)]
    report.row(
        f"first batch after a resume at {where} of {COUNT} samples", pair.ours_s * 1000, pair.reference_s * 1000, "ms",
        ratio=pair.speed, reference_name="torch's loader, skipping by iteration",
    )  # fmt: skip
    with places.directory() as place, places.node(place, 256 * MIB) as node, shoal.connect(node.unix) as client:
        _files(report, client, place / "files", where)


def _files(report: Report, client: shoal.Client, folder: Path, where: int) -> None:
    names = [f"{number:07}" for number in range(COUNT)]
    data = shoal.torch.Dataset(f"file://{folder}/", names=names, client=client)
    loader = _loader(data)
    state = loader.state_dict() | {"position": where}
    order = loader.order(0)
    for position in range(where, where + _READABLE):
        places.write_object(folder / names[order.items(position)], FILE_BYTES)
    first = pairs.timed(lambda: _first(data, state))
    cold, warm = first(), min(first() for _ in range(5))
    report.row(f"the same over {COUNT} files, through a node that has none of them yet", cold * 1000, None, "ms")
    report.row(f"the same over {COUNT} files, through a node that has them", warm * 1000, None, "ms")


def _loader(data: Any) -> shoal.torch.DataLoader:
    options: dict[str, Any] = {"collate_fn": list} if isinstance(data, shoal.torch.Dataset) else {}
    return epochs.loader(shoal.torch.DataLoader, data, 0, batch_size=BATCH, **options)


def _first(data: Any, state: dict[str, Any]) -> Any:
    loader = _loader(data)
    loader.load_state_dict(state)
    return next(iter(loader))
