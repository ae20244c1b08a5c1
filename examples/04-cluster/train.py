"""A small network learns to tell images in class folders apart, in a pod that has one Shoal volume and no privileges.

Of Shoal it has the two lines marked so. Which data set `shoal://images` is, where the nearest cache node is and what
this pod may read come with the volume (`job.yaml`). Each epoch prints its loss and where its bytes came from; the last
line says what share of the images the network recognises. It runs on torch from 1.13 on.
"""

from __future__ import annotations

import argparse
import functools
import io
import time
from collections.abc import Iterator

import torch
from PIL import Image
from rich.console import Console
from torch import nn

from shoal.torch import DataLoader, Dataset  # Shoal: instead of torch.utils.data's and torchvision's

PIXELS = 32
SUFFIXES = (".png", ".jpg", ".jpeg")
say = functools.partial(Console(markup=False, highlight=False).print, soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="URL with a folder per class: shoal://images")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode")
    parser.add_argument("--seed", type=int, default=7, help="of the order and of the network")
    return parser.parse_args()


def decode(content: bytes) -> torch.Tensor:
    """[3, PIXELS, PIXELS], 0 to 1."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = image.convert("RGB").resize((PIXELS, PIXELS))
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return values.view(PIXELS, PIXELS, 3).permute(2, 0, 1).float() / 255


def network(class_count: int) -> nn.Module:
    def block(before: int, after: int) -> Iterator[nn.Module]:
        yield from (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())

    features = [*block(3, 32), *block(32, 64), *block(64, 128)]
    return nn.Sequential(*features, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(512, class_count))


def one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader) -> tuple[float, float]:
    """(mean loss, share of the images told right while learning)."""
    losses, right, seen = 0.0, 0, 0
    for batch in loader:
        scores = model(batch["data"])
        loss = nn.functional.cross_entropy(scores, batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count = len(batch["label"])
        losses += loss.item() * count
        right += int((scores.argmax(1) == batch["label"]).sum())
        seen += count
    return losses / max(seen, 1), right / max(seen, 1)


def main() -> None:
    given = arguments()
    torch.manual_seed(given.seed)
    begun_s = time.perf_counter()

    dataset = Dataset(given.source, suffixes=SUFFIXES, transform=decode)  # Shoal: instead of ImageFolder
    loader = DataLoader(
        dataset, batch_size=given.batch_size, shuffle=True, seed=given.seed, num_workers=given.workers
    )  # fmt: skip
    if len(dataset.classes) < 2:
        raise SystemExit(f"{dataset.url}: {len(dataset)} images in {len(dataset.classes)} class folders; 2 are needed")
    model = network(len(dataset.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    say(f"{len(dataset):,} images in {len(dataset.classes)} classes, listed in {time.perf_counter() - begun_s:.1f} s")

    right = 0.0
    for epoch in range(given.epochs):
        begun_s = time.perf_counter()
        loss, right = one_epoch(model, optimizer, loader)
        stats = loader.stats()
        doors = ", ".join(f"{count:,} {door}" for door, count in sorted(stats.stages.blocks.items())) or "nowhere"
        say(
            f"epoch {epoch}: loss {loss:.4f}, {len(dataset) / (time.perf_counter() - begun_s):,.0f} images/s, waited "
            f"{stats.wait_share:.0%} of the time for data; reads by where from: {doors}",
        )
    say(loader.why_slow())
    say(f"recognised in the last epoch: {right:.1%}")


if __name__ == "__main__":
    main()
