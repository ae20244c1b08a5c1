"""A small network learns to tell images in class folders apart: an ordinary torch program that reads through Shoal.

Shoal is the two lines marked so, and what the loader can do besides: a seeded order, shares for the ranks of torchrun,
a state that goes on in the middle of an epoch on another number of ranks, and an account of what the loop waited for.
The checkpoints are torch.distributed.checkpoint's; on one process or many, with a GPU or none, the program is the same.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from shoal.demo import digits
from shoal.torch import DataLoader, Dataset  # Shoal: instead of torch.utils.data's and torchvision's

PIXELS = 32
PIXELS_MAX = 1 << 20
"""Of an image as it is stored; some of the clip art has 200 million, and one of those takes seconds."""
CLIP_ART = Path("/usr/share/openclipart/png")
SUFFIXES = (".png", ".jpg", ".jpeg")
Image.MAX_IMAGE_PIXELS = None  # `decode` has a limit of its own
console = Console(highlight=False, width=None if os.isatty(1) else 120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", nargs="?", help="folder or URL with a folder per class; else clip art, else digits")
    parser.add_argument("--steps", type=int, default=120, help="of training, those before a checkpoint included")
    parser.add_argument("--global-batch-size", type=int, default=32, help="images of a step, over all ranks")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode, for each rank")
    parser.add_argument("--seed", type=int, default=7, help="of the order and of the network")
    parser.add_argument("--checkpoints", type=Path, help="folder: go on from the latest one there, and write more")
    parser.add_argument("--checkpoint-every", type=int, default=20, help="steps")
    parser.add_argument("--record", type=Path, help="folder: every rank writes which images it was given, line by line")
    return parser.parse_args()


def url_of(source: str | None) -> str:
    """Where the images are; without a choice, clip art where that is installed, else digits written as files."""
    if source is None and CLIP_ART.is_dir():
        source = str(CLIP_ART)
    if source is None:
        digits.write(digits.directory())
        source = str(digits.directory())
    return source if "://" in source else f"file://{Path(source).expanduser().absolute()}"


def decode(content: bytes) -> torch.Tensor:
    """[3, PIXELS, PIXELS], 0 to 1; what is transparent becomes white, and so does an image of too many pixels."""
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > PIXELS_MAX:
            return torch.ones(3, PIXELS, PIXELS)
        pixels = image.convert("RGBA").resize((PIXELS, PIXELS))
    flat = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    values = torch.frombuffer(bytearray(flat.tobytes()), dtype=torch.uint8)
    return values.view(PIXELS, PIXELS, 3).permute(2, 0, 1).float() / 255


def network(class_count: int) -> nn.Module:
    widths = (3, 32, 64, 128)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(widths[-1] * 16, class_count))


class Training:
    """What a checkpoint holds beside the loader's state. torch.distributed.checkpoint asks and tells it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = state["step"]


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint: its metadata is what torch writes last."""
    complete = [path.parent for path in folder.glob("step-*/.metadata")]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def join() -> torch.device:
    """This process's place among the ranks, as torchrun says it, else alone; its device."""
    gpu = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not gpu:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


def recorder(folder: Path | None) -> Callable[[int, dict[str, Any]], None]:
    """Writes for every step the epoch, the positions in it and the images there."""
    if folder is None:
        return lambda epoch, batch: None
    folder.mkdir(parents=True, exist_ok=True)
    lines = (folder / f"rank-{dist.get_rank()}.jsonl").open("a", buffering=1)

    def record(epoch: int, batch: dict[str, Any]) -> None:
        lines.write(json.dumps([epoch, batch["position"].tolist(), batch["index"].tolist()]) + "\n")

    return record


def one_epoch(given: argparse.Namespace, training: Training, loader: DataLoader, device: torch.device) -> list[str]:
    """From where the loader is to the epoch's end, or to the last step asked for; a row of the table."""
    epoch, begun_s, losses = loader.epoch, time.perf_counter(), 0.0
    for batch in loader:
        given.record_batch(epoch, batch)
        images, labels = batch["data"].to(device, non_blocking=True), batch["label"].to(device, non_blocking=True)
        loss = nn.functional.cross_entropy(training.model(images), labels)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        training.step += 1
        losses += loss.item()
        if given.checkpoints is not None and training.step % given.checkpoint_every == 0:
            dcp.save(
                {"training": training, "loader": loader}, checkpoint_id=given.checkpoints / f"step-{training.step}"
            )
        if training.step >= given.steps:
            break
    stats = loader.stats()
    images_per_s = stats.batch_count * given.global_batch_size / (time.perf_counter() - begun_s)
    came_from = ", ".join(f"{count} {name}" for name, count in sorted(stats.stages.blocks.items()))
    return [
        str(epoch), str(stats.batch_count), f"{losses / max(stats.batch_count, 1):.3f}", f"{images_per_s:,.0f}",
        f"{stats.wait_s:.2f} s, {stats.wait_share:.0%}", came_from or "-",
    ]  # fmt: skip


def show(rows: Iterable[list[str]], loader: DataLoader) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("epoch", "steps", "loss", "images/s", "waited for data", "reads of rank 0, by where from"):
        table.add_column(title, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(loader.why_slow(), markup=False, soft_wrap=True)


def main() -> None:
    given = arguments()
    device = join()
    say = console.print if dist.get_rank() == 0 else lambda *text, **options: None
    torch.manual_seed(given.seed)

    dataset = Dataset(url_of(given.source), suffixes=SUFFIXES, transform=decode)  # Shoal: instead of ImageFolder
    loader = DataLoader(
        dataset, shuffle=True, seed=given.seed, global_batch_size=given.global_batch_size, drop_last=True,
        num_workers=given.workers, pin_memory=device.type == "cuda", with_index=True,
    )  # fmt: skip
    if not len(loader):
        raise SystemExit(f"{dataset.url}: {len(dataset)} images are less than one step of {given.global_batch_size}")
    model = nn.parallel.DistributedDataParallel(network(len(dataset.classes)).to(device))
    training = Training(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))
    say(f"{len(dataset):,} images in {len(dataset.classes)} classes, ranks: {dist.get_world_size()}, on {device.type}")

    found = latest(given.checkpoints) if given.checkpoints is not None else None
    if found is not None:
        dcp.load({"training": training, "loader": loader}, checkpoint_id=found)
        say(f"goes on from {found}: {loader.state_dict()}", markup=False, soft_wrap=True)

    given.record_batch = recorder(given.record)
    rows: list[list[str]] = []
    while training.step < given.steps:
        rows.append(one_epoch(given, training, loader, device))
    if dist.get_rank() == 0:
        show(rows, loader)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
