"""What the benchmark's training loops are made of: readers, ways to the device, one step of training, a stop-watch.

A loop keeps one step of training in flight: it hands over batch n while the device computes batch n - 1, as a loop does
that looks at its loss now and then. Time in `next(loader)` is waiting for data, whether the device had work meanwhile
or not; what that cost, says the comparison with the same loop without any data.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from gpu_images import CLASS_COUNT
from PIL import Image
from torch import nn

PIXELS = 224
_END = object()
_MEAN, _DEVIATION = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)

Prepare = Callable[[Any], tuple[torch.Tensor, torch.Tensor]]
"""A loader's batch to what the network takes: images on the device, labels on the device."""


@dataclass(slots=True)
class Row:
    """One loop. Seconds are of all its epochs together."""

    name: str
    batches: int
    samples: int
    elapsed_s: float
    wait_s: float
    """In `next(loader)`, by a stop-watch of the benchmark's own."""
    first_wait_s: float
    """Of it before each epoch's first batch: starting, and filling what workers have ready."""
    prepare_s: float
    """The host's time in handing batches to the device, decoding there included."""
    loader_wait_share: float | None = None
    """What the loader's own account says of its last epoch: `loader.stats().wait_share`."""
    why: str = ""
    """`loader.why_slow()`."""
    note: str = ""

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.elapsed_s

    @property
    def wait_share(self) -> float:
        return self.wait_s / self.elapsed_s

    @property
    def steady_wait_share(self) -> float:
        """Without each epoch's first batch: what a long epoch comes to."""
        return (self.wait_s - self.first_wait_s) / (self.elapsed_s - self.first_wait_s)

    def as_dict(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("samples_per_s", "wait_share", "steady_wait_share")}
        return asdict(self) | derived


class Trainer:
    """A network and its optimizer on one device."""

    def __init__(self, device: torch.device, small: bool) -> None:
        self.device = device
        if small:
            layers = nn.Conv2d(3, CLASS_COUNT, 7, stride=32), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            self.model: nn.Module = nn.Sequential(*layers)
        else:
            import torchvision

            self.model = torchvision.models.resnet50()
        self.model = self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_flight: list[Any] = []

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Begins a step, and returns when the one before it has ended."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._in_flight.append(event)
            if len(self._in_flight) > 1:
                self._in_flight.pop(0).synchronize()

    def finish(self) -> None:
        self._in_flight.clear()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def copied(self, begin: Callable[[], Any]) -> Any:
        """What `begin` puts on the device, on a stream of its own beside the training: a tensor, or parts of one."""
        if self.copies is None:
            return begin()
        with torch.cuda.stream(self.copies):
            result = begin()
        training = torch.cuda.current_stream()
        training.wait_stream(self.copies)
        (result[0] if isinstance(result, list) else result).record_stream(training)
        return result

    def fixed(self, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels that are on the device already."""
        images = torch.randn(batch_size, 3, PIXELS, PIXELS, device=self.device)
        labels = torch.randint(0, CLASS_COUNT, (batch_size,), device=self.device)
        return images.contiguous(memory_format=torch.channels_last), labels


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] on the device to what the network takes."""
    mean = torch.tensor(_MEAN, device=images.device).view(1, 3, 1, 1)
    deviation = torch.tensor(_DEVIATION, device=images.device).view(1, 3, 1, 1)
    return ((images.float() - mean) / deviation).contiguous(memory_format=torch.channels_last)


def decode(content: bytes) -> torch.Tensor:
    """JPEG to uint8 [3, PIXELS, PIXELS], in a worker."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = image.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BILINEAR, reducing_gap=2.0)
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(PIXELS, PIXELS, 3).permute(2, 0, 1)


class PlainFiles(torch.utils.data.Dataset[Any]):
    """The same files by open(): as many a training script reads them."""

    def __init__(self, paths: list[Path], decoding: bool) -> None:
        self.paths = [str(path) for path in paths]
        self.decoding = decoding

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with open(self.paths[number], "rb") as file:
            content = file.read()
        label = int(self.paths[number].rsplit("/", 2)[1])
        return {"data": decode(content) if self.decoding else content, "label": label}


def joined(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Raw files end to end in one tensor: the cheapest that torch can hand over and pin."""
    content = bytearray().join(sample["data"] for sample in samples)
    lengths = torch.tensor([len(sample["data"]) for sample in samples])
    labels = torch.tensor([sample["label"] for sample in samples])
    return {"data": torch.frombuffer(content, dtype=torch.uint8), "length": lengths, "label": labels}


def measure(
    name: str, trainer: Trainer, epochs: Iterable[Any], prepare: Prepare, batch_size: int, steps_max: int | None = None
) -> Row:
    """Trains over what each of `epochs` yields, at most `steps_max` batches of each."""
    row = Row(name, 0, 0, 0.0, 0.0, 0.0, 0.0)
    for loader in epochs:
        _epoch(row, trainer, loader, prepare, steps_max)
        row.samples = row.batches * batch_size
        if hasattr(loader, "why_slow"):
            row.loader_wait_share, row.why = loader.stats().wait_share, loader.why_slow()
    return row


def _epoch(row: Row, trainer: Trainer, loader: Any, prepare: Prepare, steps_max: int | None) -> None:
    trainer.finish()
    begun_s = asked_s = time.perf_counter()
    batches = iter(loader)
    count = 0
    while count != steps_max:
        batch = next(batches, _END)
        answered_s = time.perf_counter()
        row.wait_s += answered_s - asked_s
        if batch is _END:
            break
        if not count:
            row.first_wait_s += answered_s - asked_s
        images, labels = prepare(batch)
        row.prepare_s += time.perf_counter() - answered_s
        trainer.step(images, labels)
        count += 1
        asked_s = time.perf_counter()
    trainer.finish()
    row.batches += count
    row.elapsed_s += time.perf_counter() - begun_s
