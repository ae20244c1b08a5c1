"""What many nodes say, added up."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shoal_operator.model import DatasetReport, DatasetTotals, NodeReport, PreloadReport


def dataset_totals(reports: Iterable[NodeReport]) -> dict[str, DatasetTotals]:
    """By name on nodes."""
    said: dict[str, list[tuple[str, DatasetReport]]] = {}
    for report in reports:
        for name, dataset in report.datasets.items():
            said.setdefault(name, []).append((report.node, dataset))
    return {name: _dataset(parts) for name, parts in said.items()}


def _dataset(parts: list[tuple[str, DatasetReport]]) -> DatasetTotals:
    scans = [dataset for _, dataset in parts if dataset.manifest]
    scan = max(scans, key=lambda dataset: dataset.scanned_at_s, default=DatasetReport())
    # A node that scanned before, and another does now, may still say what went wrong then. One that gives no time
    # speaks of now.
    errors = [
        (node, dataset)
        for node, dataset in parts
        if dataset.error_code and not 0 < dataset.scanned_at_s < scan.scanned_at_s
    ]
    node, worst = min(errors, key=lambda error: error[0], default=("", DatasetReport()))
    return DatasetTotals(
        scan=scan,
        error_code=worst.error_code,
        error_message=f"{node}: {worst.error_message}" if node else "",
        error_generation=worst.generation,
        cached_bytes=sum(dataset.cached_bytes for _, dataset in parts),
        hits=sum(dataset.hits for _, dataset in parts),
        misses=sum(dataset.misses for _, dataset in parts),
        nodes=frozenset(node for node, _ in parts),
    )


class PreloadSums(msgspec.Struct, frozen=True):
    """A run of a preload over all nodes that bear on it."""

    objects_scanned: int = 0
    objects_done: int = 0
    objects_failed: int = 0
    bytes_scanned: int = 0
    bytes_done: int = 0
    bytes_verified: int = 0
    bytes_owned: int = 0
    errors: tuple[str, ...] = ()


ERRORS_MAX = 5


def preload_sums(reports: Iterable[tuple[str, PreloadReport]]) -> PreloadSums:
    """Of (node, report) pairs."""
    parts = list(reports)
    counts = {
        name: sum(getattr(report, name) for _, report in parts)
        for name in PreloadSums.__struct_fields__
        if name != "errors"
    }
    errors = [f"{node}: {error}" for node, report in parts for error in report.errors]
    return PreloadSums(**counts, errors=tuple(errors[:ERRORS_MAX]))
