"""The part of the demonstration that any training program has: decode, model, epoch, accuracy. Nothing here is Shoal's.

Small greyscale images keep their size; others become 32x32 RGB. The model is two convolutions and a linear layer:
enough for 0.97 and more of the digits, little enough that a CPU trains it in seconds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

SMALL_PIXELS = 32


@dataclass(frozen=True, slots=True)
class Decode:
    """Bytes of an image to a tensor of one shape for the whole data set."""

    mode: str
    width: int
    height: int

    @staticmethod
    def like(content: bytes) -> Decode:
        """The shape for a data set whose first image this is."""
        with Image.open(io.BytesIO(content)) as image:
            if image.mode == "L" and max(image.size) <= SMALL_PIXELS:
                return Decode("L", *image.size)
        return Decode("RGB", SMALL_PIXELS, SMALL_PIXELS)

    @property
    def channels(self) -> int:
        return len(self.mode)

    def __call__(self, content: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.convert(self.mode)
        if pixels.size != (self.width, self.height):
            pixels = pixels.resize((self.width, self.height))
        flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
        return flat.view(self.height, self.width, self.channels).permute(2, 0, 1).float() / 255


def model(channels: int, class_count: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(8),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 8 * 8, class_count),
    )


class Descent:
    """Gradient descent with momentum, as torch.optim.SGD does it. To make any optimizer of torch.optim imports
    torch's compiler: several seconds that a demonstration of a cache should not take."""

    def __init__(self, net: nn.Module, rate: float, momentum: float = 0.9) -> None:
        self._parameters = list(net.parameters())
        self._velocities = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._rate, self._momentum = rate, momentum

    @torch.no_grad()
    def step(self) -> None:
        for parameter, velocity in zip(self._parameters, self._velocities, strict=True):
            assert parameter.grad is not None
            velocity.mul_(self._momentum).add_(parameter.grad)
            parameter.sub_(velocity, alpha=self._rate)
            parameter.grad = None


def train(
    net: nn.Module,
    descent: Descent,
    batches: Iterable[Any],
    on_progress: Callable[[int], None] = lambda samples: None,
) -> float:
    """One epoch; returns the mean loss. `on_progress` hears of each batch's samples."""
    net.train()
    total, count = 0.0, 0
    for batch in batches:
        loss = nn.functional.cross_entropy(net(batch["data"]), batch["label"])
        loss.backward()
        descent.step()
        samples = len(batch["label"])
        total += loss.item() * samples
        count += samples
        on_progress(samples)
    return total / count


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterable[Any]) -> float:
    net.eval()
    right, count = 0, 0
    for batch in batches:
        right += int((net(batch["data"]).argmax(1) == batch["label"]).sum())
        count += len(batch["label"])
    return right / count
