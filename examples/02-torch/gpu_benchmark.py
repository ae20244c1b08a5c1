"""ResNet-50 trains on one GPU while 110 KB files come through Shoal, or from the page cache without it.

    python examples/02-torch/gpu_benchmark.py --out FOLDER          (a few minutes; --cpu-smoke: a minute without a GPU)

Makes JPEG files, starts a cache node that has room for them, warms it, and trains over the same files in turn: with no
data at all, as a measure; with the files' raw bytes on their way to the GPU (decoding excluded: the network sees random
images that are there already); and with the images decoded in workers and on the GPU. For each loop it prints which
part of the time the loop waited for data, by the loader's own account and by a stop-watch. Everything also goes to
gpu_benchmark.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_images
import torch
import torch.utils.data
from gpu_loops import PIXELS, PlainFiles, Prepare, Row, Trainer, decode, joined, measure, normalised
from rich import box
from rich.console import Console
from rich.table import Table

import shoal
from shoal import shared_client
from shoal.client import Client
from shoal.torch import DataLoader, Dataset, Views
from shoal.torch import device as devices

NODE_START_TIMEOUT_S = 60.0
WAIT_SHARE_TARGET = 0.02
WARM_UP_STEPS = 10
VIEW_WORKERS = 4  # they decode nothing, and each costs time to fork
console = Console(highlight=False, width=None if os.isatty(1) else 160)


def say(text: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu_benchmark.json and the node's log")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--file-bytes", type=int, default=110_000, help="of one file on average")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--epochs", type=int, default=2, help="of every loop")
    parser.add_argument("--cpu-smoke", action="store_true", help="no GPU, few files, a tiny network: does it all work?")
    given = parser.parse_args()
    if given.cpu_smoke:
        given.files, given.batch_size, given.workers, given.epochs = 96, 16, 2, 1
    elif not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --cpu-smoke does without one")
    given.device = torch.device("cpu") if given.cpu_smoke else torch.device("cuda", 0)
    return given


@contextlib.contextmanager
def running_node(folder: Path, budget_bytes: int, log_file: Path) -> Iterator[Client]:
    """A client of a node of its own, which ends with the block."""
    socket = folder / "node.sock"
    config = {"node_name": "benchmark", "dram": {"budget_bytes": budget_bytes}, "doors": {"unix": str(socket)}}
    (folder / "node.json").write_text(json.dumps(config))
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_node", "--config", str(folder / "node.json")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + NODE_START_TIMEOUT_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the node did not start:\n{log_file.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        with shoal.connect(f"unix:{socket}") as client:
            shared_client.offer(client)
            yield client
    finally:
        process.terminate()
        process.wait(30)


class Benchmark:
    """The loops over one data set."""

    def __init__(
        self, given: argparse.Namespace, client: Client, url: str, paths: list[Path], found: dict[str, Any]
    ) -> None:
        self.given, self.client, self.url, self.paths, self.found = given, client, url, paths, found
        self.trainer = Trainer(given.device, small=given.cpu_smoke)
        self.fixed = self.trainer.fixed(given.batch_size)
        self.rows: list[Row] = []

    def all(self) -> None:
        workers = self.given.workers
        torch.backends.cudnn.benchmark = True
        measure("warm-up", self.trainer, [[None] * WARM_UP_STEPS], lambda _: self.fixed, self.given.batch_size)
        steps = len(self.paths) // self.given.batch_size
        self.loop("no data: the network alone", [None] * steps, lambda _: self.fixed)
        views = Dataset(self.url, views=True, client=self.client)
        few = min(workers, VIEW_WORKERS)
        self.loop(f"raw bytes: Shoal, views, {few} workers", self.ours(views, few), self.raw_views)
        self.loop("raw bytes: Shoal, views, no workers", self.ours(views, 0), self.raw_views)
        plain = PlainFiles(self.paths, decoding=False)
        self.loop(f"raw bytes: torch, open(), {workers} workers", self.plain(plain, workers, joined), self.raw_tensor)
        decoded = Dataset(self.url, transform=decode, client=self.client)
        self.loop(f"decoding: Shoal, Pillow in {workers} workers", self.ours(decoded, workers), self.images)
        plain = PlainFiles(self.paths, decoding=True)
        self.loop(
            f"decoding: torch, open(), Pillow in {workers} workers", self.plain(plain, workers, None), self.images
        )
        if self.given.device.type == "cuda":
            self.on_the_gpu(views)

    def handed_over(self) -> dict[str, float]:
        """Samples per second without any training: the first pass registers the segments with CUDA, the second not."""
        loader = self.ours(Dataset(self.url, views=True, client=self.client), self.given.workers)
        rates: dict[str, float] = {}
        for name in ("first_pass_samples_per_s", "second_pass_samples_per_s"):
            begun_s = time.perf_counter()
            for batch in loader:
                self.raw_views(batch)
            self.trainer.finish()
            rates[name] = len(loader) * self.given.batch_size / (time.perf_counter() - begun_s)
        say(f"handed over to the device without training: { ({n: round(rate) for n, rate in rates.items()}) }")
        return rates

    def on_the_gpu(self, views: Dataset) -> None:
        name = f"decoding: Shoal, views, nvJPEG on the GPU, {VIEW_WORKERS} workers"
        try:
            self.loop(name, self.ours(views, VIEW_WORKERS), self.decoded_on_the_gpu)
        except (RuntimeError, ImportError) as error:  # of a torchvision that was built without nvJPEG
            say(f"{name}: not possible here: {type(error).__name__}: {error}")

    def loop(self, name: str, loader: Any, prepare: Prepare) -> None:
        row = measure(name, self.trainer, [loader] * self.given.epochs, prepare, self.given.batch_size)
        self.rows.append(row)
        self.save()
        say(
            f"{name}: {row.samples_per_s:,.0f} samples/s, waited {row.wait_share:.2%} of {row.elapsed_s:.1f} s "
            f"({row.steady_wait_share:.2%} without first batches). {row.why}"
        )

    def save(self) -> None:
        """After every loop, so that one which ends the process takes only itself along."""
        self.found |= {"rows": [row.as_dict() for row in self.rows], "device": asdict(devices.stats())}
        (self.given.out / "gpu_benchmark.json").write_text(json.dumps(self.found, indent=1, default=str) + "\n")

    # Loaders

    def ours(self, dataset: Dataset, workers: int) -> DataLoader:
        return DataLoader(dataset, **self._options(workers), seed=1)

    def plain(self, dataset: PlainFiles, workers: int, collate: Any) -> Any:
        return torch.utils.data.DataLoader(dataset, **self._options(workers), collate_fn=collate)

    def _options(self, workers: int) -> dict[str, Any]:
        return {
            "batch_size": self.given.batch_size, "shuffle": True, "drop_last": True, "num_workers": workers,
            "persistent_workers": workers > 0, "pin_memory": self.given.device.type == "cuda",
        }  # fmt: skip

    # To the device

    def raw_views(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        views: Views = batch["data"]
        self.trainer.copied(lambda: views.to(self.given.device, non_blocking=True))
        return self.fixed

    def raw_tensor(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.trainer.copied(lambda: batch["data"].to(self.given.device, non_blocking=True))
        return self.fixed

    def images(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.trainer.copied(lambda: batch["data"].to(self.given.device, non_blocking=True))
        return normalised(images), batch["label"].to(self.given.device, non_blocking=True)

    def decoded_on_the_gpu(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        from torchvision.io import ImageReadMode, decode_jpeg

        def begin() -> torch.Tensor:
            found = decode_jpeg(batch["data"].readonly(), mode=ImageReadMode.RGB, device=self.given.device)
            pixels = torch.stack(found).float()
            return torch.nn.functional.interpolate(pixels, (PIXELS, PIXELS), mode="bilinear", antialias=True)

        return normalised(self.trainer.copied(begin)), batch["label"].to(self.given.device, non_blocking=True)


def check_bytes(dataset: Dataset, device: torch.device, batch_size: int) -> None:
    """What arrives on the device is what is in the files."""
    batch = next(iter(DataLoader(dataset, batch_size, shuffle=True, pin_memory=device.type == "cuda")))
    there = batch["data"].to(device, non_blocking=True)
    for path, tensor in zip(batch["path"], there, strict=True):
        on_disk = Path(dataset.url.removeprefix("file://"), path).read_bytes()
        if bytes(tensor.cpu().numpy()) != on_disk:
            raise SystemExit(f"{path}: other bytes arrived than are in the file")


def copy_rates(dataset: Dataset, batch_size: int) -> dict[str, float]:
    """GB/s to the GPU for the bytes of one batch: out of the cache's memory, and in the ways that this replaces."""
    views: Views = next(iter(DataLoader(dataset, batch_size, pin_memory=True)))["data"]
    lengths = views.lengths

    def one_tensor() -> torch.Tensor:
        return torch.cat(views.readonly())

    pinned = one_tensor().pin_memory()
    ways: dict[str, Callable[[], Any]] = {
        "views": lambda: views.to("cuda", non_blocking=True),
        "one_pinned_tensor": lambda: pinned.to("cuda", non_blocking=True),
        "copy_pin_upload": lambda: one_tensor().pin_memory().to("cuda", non_blocking=True),
        "copy_upload": lambda: one_tensor().to("cuda"),
    }
    rates = {name: sum(lengths) / 1e9 / _median_s(copy) for name, copy in ways.items()}
    rates["views_over_one_pinned_tensor"] = rates["views"] / rates["one_pinned_tensor"]
    rates["views_over_copy_pin_upload"] = rates["views"] / rates["copy_pin_upload"]
    return rates


def _median_s(copy: Callable[[], Any], repeats: int = 20) -> float:
    taken: list[float] = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        begun_s = time.perf_counter()
        copy()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun_s)
    return statistics.median(taken[3:])


def machine(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "processors": os.cpu_count(), "python": platform.python_version(),
        "kernel": platform.release(), "torch": torch.__version__,
    }  # fmt: skip
    if device.type == "cuda":
        import torchvision

        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        facts |= {"torchvision": torchvision.__version__, "gpu": torch.cuda.get_device_name(), "driver": driver}
    return facts


def table(rows: list[Row]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("loop")
    for title in (
        "samples/s", "ms/step", "over\nno data", "waited\nfor data", "without\nfirst batches", "loader's\naccount",
        "handing\nover",
    ):  # fmt: skip
        shown.add_column(title, justify="right", vertical="bottom")
    alone_s = rows[0].elapsed_s / rows[0].batches
    for row in rows:
        account = "-" if row.loader_wait_share is None else f"{row.loader_wait_share:.2%}"
        step_s = row.elapsed_s / row.batches
        shown.add_row(
            row.name, f"{row.samples_per_s:,.0f}", f"{step_s * 1e3:.1f}", f"{step_s / alone_s - 1:+.1%}",
            f"{row.wait_share:.2%}", f"{row.steady_wait_share:.2%}", account, f"{row.prepare_s / row.elapsed_s:.1%}",
        )  # fmt: skip
    return shown


def say_verdicts(rows: list[Row]) -> None:
    """With and without first batches: an epoch here lasts seconds, and starting workers weighs more than in hours."""
    for row in rows:
        met = "met" if row.wait_share < WAIT_SHARE_TARGET else "not met"
        steady = "met" if row.steady_wait_share < WAIT_SHARE_TARGET else "not met"
        say(f"less than {WAIT_SHARE_TARGET:.0%} of the time waiting: {met}; without first batches {steady}: {row.name}")


def main() -> None:
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"options": {name: str(value) for name, value in vars(given).items()}}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-gpu-")))
        paths = gpu_images.write(folder / "images", given.files, given.file_bytes, given.workers)
        total = sum(path.stat().st_size for path in paths)
        url = f"file://{folder}/images"
        say(f"{len(paths):,} files of {total / len(paths):,.0f} bytes on average, {total / 1e9:.2f} GB")
        found["machine"] = machine(given.device)  # only now: processes are not forked from one that uses CUDA
        say(str(found["machine"]))
        budget = max(256 << 20, 3 * total)
        client = stack.enter_context(running_node(folder, budget, given.out / "gpu_benchmark_node.log"))
        warm = [sys.executable, "-m", "shoal.cli", "warm", "--address", f"unix:{folder}/node.sock", url]
        subprocess.run(warm, check=True)
        views = Dataset(url, views=True, client=client)
        check_bytes(views, given.device, given.batch_size)
        if given.device.type == "cuda":
            found["copy_gb_per_s"] = copy_rates(views, given.batch_size)
            say(f"to the GPU, GB/s: { ({n: round(rate, 2) for n, rate in found['copy_gb_per_s'].items()}) }")
        benchmark = Benchmark(given, client, url, paths, found)
        found["handed_over"] = benchmark.handed_over()
        benchmark.all()
        found["node"] = client.node_stats()
        benchmark.save()
        devices.wait_for_uploads(10)
    console.print(table(benchmark.rows))
    if not given.cpu_smoke:
        say_verdicts(benchmark.rows[1:])
    say(f"segments: {devices.stats()}")


if __name__ == "__main__":
    main()
