"""`python -m shoal.demo [SOURCE]`: trains a small classifier on images that it reads through the cache.

Without a source it makes one: scikit-learn's digits as PNG files. The node is the one that `shoal.connect()` finds, and
that is the user's embedded node unless a configuration says otherwise. What the cache holds before the first epoch is
looked up and said, because a second run finds it warm. Training happens in this process, without workers, so that each
read's door can be told; hence the waiting that the table shows has the decoding of images in it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Subset

import shoal
from shoal import errors
from shoal.connect import find_config
from shoal.demo import digits, source, training
from shoal.demo.report import Epoch, Report
from shoal.torch import DataLoader, Dataset
from shoal_core import units

if TYPE_CHECKING:
    from shoal.client import Client

BATCH_SIZE = 32
LEARNING_RATE = 0.03
TEST_FRACTION = 5
"""One image in so many is kept for the test."""
_TIERS = {"dram": "DRAM"}
INSPECTED_MAX = 10_000
"""Images that are looked up in the cache before the first epoch; of more, as many spread over all."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    report = Report()
    try:
        # Whoever runs a demonstration asks for an embedded node, in a pod too; a configured node still comes first.
        with shoal.connect(embedded=None if find_config() else True) as client:
            _run(client, arguments.source, arguments.epochs, report)
    except (errors.ShoalError, OSError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"shoal.demo: {error}{notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shoal.demo", description="Trains a small classifier on images that it reads through the cache."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        default=os.environ.get("SOURCE") or None,
        help="images in class folders: a directory, s3://, gs://, az:// or file:// URL, or the http(s):// URL of a text"
        " file with one relative path per line (default: $SOURCE, else scikit-learn's digits)",
    )
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    return arguments


def _run(client: Client, place: str | None, epoch_count: int, report: Report) -> None:
    dataset = source.open_dataset(place or _digits(report), client)
    images = source.images(dataset)
    report.say(f"{len(images):,} images in {len(dataset.classes)} classes below {dataset.url}")
    warmth = _warmth(client, dataset, images, report)
    dataset.transform = decode = _decode(client, dataset, images[0])

    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a model computes less than its threads would wait for each other
    order = torch.randperm(len(images)).tolist()
    test_count = max(1, len(images) // TEST_FRACTION)
    test = Subset(dataset, [images[position] for position in order[:test_count]])
    loader = DataLoader(
        Subset(dataset, [images[position] for position in order[test_count:]]), batch_size=BATCH_SIZE, shuffle=True
    )
    net = training.model(decode.channels, len(dataset.classes))
    descent = training.Descent(net, LEARNING_RATE)
    epochs: list[Epoch] = []
    for number in range(1, epoch_count + 1):
        title = f"epoch {number} of {epoch_count}"
        with report.progress(title, len(order) - test_count) as advance:
            epoch = _train(client, net, descent, loader, advance)
        epochs.append(Epoch(f"{number} {warmth}" if number == 1 else str(number), *epoch))
    accuracy = training.accuracy(net, DataLoader(test, batch_size=BATCH_SIZE))
    report.table(epochs)
    report.say(f"test accuracy {accuracy:.4f} on {test_count:,} images that were not trained on")
    _say_where_the_node_is(client, report)


def _digits(report: Report) -> str:
    """The default source; made once."""
    folder = digits.directory()
    if not folder.exists():
        report.say(f"writing scikit-learn's digits as images to {folder}")
        with report.progress("writing", digits.COUNT) as advance:
            digits.write(folder, lambda: advance(1))
    return str(folder)


def _warmth(client: Client, dataset: Dataset, images: Sequence[int], report: Report) -> str:
    """How warm the first epoch starts, in a word; said in a sentence."""
    looked_at = images[:: -(-len(images) // INSPECTED_MAX)]
    found = client.inspect([dataset.url + dataset.path(number) for number in looked_at])
    in_memory = sum(each.dram_bytes >= each.size for each in found)
    held = sum(max(each.dram_bytes, each.disk_bytes) >= each.size for each in found)
    of = f"{len(found):,}" if len(found) == len(images) else f"{len(found):,} looked at"
    where = f"{in_memory:,} in memory, {held - in_memory:,} on disk"
    if not held:
        report.say("the cache holds none of them: the first epoch is cold")
        return "cold"
    if held == len(found):
        report.say(f"the cache holds all of them ({where}) from an earlier run: the first epoch starts warm")
        return "warm"
    report.say(f"the cache holds {held:,} of {of} ({where}) from an earlier run: the first epoch starts partly warm")
    return "mixed"


def _decode(client: Client, dataset: Dataset, first: int) -> training.Decode:
    url = dataset.url + dataset.path(first)
    try:
        return training.Decode.like(client.read(url))
    except OSError as error:
        error.add_note(f"the first image is {url}")
        raise


def _train(client: Client, net: Any, descent: training.Descent, loader: DataLoader, advance: Any) -> tuple[Any, ...]:
    """One epoch; the fields of `Epoch` behind its name."""
    before, hits_before = client.stats(), dict(client.stats().hits)
    byte_count, wait_s, fetched_count = before.bytes, before.wait_s, _fetched_count(client)
    begun_s = time.perf_counter()
    training.train(net, descent, loader, advance)
    elapsed_s = time.perf_counter() - begun_s
    after, waited = client.stats(), loader.stats()
    hits = {door: count - hits_before[door] for door, count in after.hits.items()}
    cache_wait_s = after.wait_s - wait_s
    fetched_count = _fetched_count(client) - fetched_count
    return waited.sample_count, after.bytes - byte_count, elapsed_s, waited.wait_s, cache_wait_s, hits, fetched_count


def _fetched_count(client: Client) -> int:
    """Blocks that the node has ever fetched from an origin; 0 while there is no node to ask."""
    try:
        return sum(results.get("ok", 0) for results in client.node_stats()["fills"].values())
    except errors.ShoalError:
        return 0


def _say_where_the_node_is(client: Client, report: Report) -> None:
    values = client.node_stats()
    tiers = ", ".join(
        f"{_TIERS.get(name, name)} {units.size(tier['used_bytes'])} of {units.size(tier['budget_bytes'])}"
        for name, tier in values["tiers"].items()
    )
    report.say(f"node {values['node']}, pid {values['pid']}, {values['addresses'][0]}: {tiers}")
    if values["embedded"]:
        command = Path(sys.executable).with_name("shoal")
        report.say(f"it ends by itself some minutes after its last client, or now: {command} stop")


if __name__ == "__main__":
    sys.exit(main())
