"""scikit-learn's digits as files: 1,797 greyscale PNGs of 8x8 pixels in ten class folders.

They are written once, below the user's cache folder, and renamed into place when they are complete; a second run finds
the same files (same times, hence the same versions), so what the cache holds of them is still good.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

COUNT = 1797


def directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "shoal-demo" / "digits"


def write(target: Path, on_image: Callable[[], None] = lambda: None) -> None:
    """Makes `target`, unless it is there; `on_image` is called after each image."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix="digits-", dir=target.parent))
    try:
        _write_all(staged, on_image)
        staged.rename(target)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        if not target.exists():  # else another run was faster, and its files are as good
            raise


def _write_all(folder: Path, on_image: Callable[[], None]) -> None:
    from sklearn.datasets import load_digits  # takes longer to import than to write the files; once is enough

    digits: Any = load_digits()
    for number in range(10):
        (folder / str(number)).mkdir()
    for index, (pixels, number) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray((pixels * 15).astype("uint8"), mode="L")  # scikit-learn counts grey from 0 to 16
        image.save(folder / str(number) / f"{index:04}.png")
        on_image()
