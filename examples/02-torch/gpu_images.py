"""JPEG files for the benchmark: photographs in size and in what they cost to decode, made from random numbers.

Each is smooth colour with noise over it, 500x375 pixels, in 100 class folders; the strength of the noise is chosen once
so that files have about the wanted size. Decoders spend their time on the entropy-coded bytes, of which there are as
many as in a photograph of that file size.
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
CLASS_COUNT = 100
QUALITY = 90


def jpeg(number: int, noise: float) -> bytes:
    """The image of that number, encoded."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = smooth + random.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32) * noise
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def noise_for(size_bytes: int) -> float:
    """How strong the noise must be for files of that mean size."""
    low, high = 0.0, 120.0
    for _ in range(12):
        noise = (low + high) / 2
        if statistics.mean(len(jpeg(number, noise)) for number in range(4)) < size_bytes:
            low = noise
        else:
            high = noise
    return (low + high) / 2


def write(folder: Path, count: int, size_bytes: int, processes: int) -> list[Path]:
    """Writes the files; their paths, in the order of their names."""
    noise = noise_for(size_bytes)
    for number in range(min(CLASS_COUNT, count)):
        (folder / f"{number:03}").mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number % CLASS_COUNT:03}" / f"{number:06}.jpg" for number in range(count)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.starmap(_write, ((path, number, noise) for number, path in enumerate(paths)), chunksize=32)
    return sorted(paths)


def _write(path: Path, number: int, noise: float) -> None:
    path.write_bytes(jpeg(number, noise))
