"""Epochs of MosaicML Streaming over files that it has on local disk, for a benchmark.

usage: epochs.py FILES FOLDER BATCH   makes an MDS data set in FOLDER of all files below FILES; then each line on stdin
is a number of workers, and one epoch with so many is answered by {"samples": ..., "seconds": ...}
"""

import json
import sys
import time
from pathlib import Path

import streaming
import torch.utils.data


def write(files, folder):
    columns = {"data": "bytes", "label": "int", "path": "str"}
    with streaming.MDSWriter(out=folder, columns=columns, hashes=[]) as writer:
        for path in sorted(path for path in Path(files).rglob("*") if path.is_file()):
            writer.write({"data": path.read_bytes(), "label": 0, "path": str(path)})


def loader(folder, batch, workers):
    local = Path(f"{folder}-{workers}")  # Streaming takes each local folder once per process
    local.symlink_to(folder)
    data = streaming.StreamingDataset(local=str(local), shuffle=True, batch_size=batch, num_canonical_nodes=1)
    return torch.utils.data.DataLoader(
        data, batch_size=batch, num_workers=workers, persistent_workers=workers > 0, collate_fn=list
    )


def read(folder, batch):
    loaders = {}
    for line in sys.stdin:
        workers = int(line)
        if workers not in loaders:
            loaders[workers] = loader(folder, batch, workers)
        began_s = time.perf_counter()
        count = sum(1 for samples in loaders[workers] for sample in samples if sample["data"])
        print(json.dumps({"samples": count, "seconds": time.perf_counter() - began_s}), flush=True)


if __name__ == "__main__":
    write(*sys.argv[1:3])
    read(sys.argv[2], int(sys.argv[3]))
