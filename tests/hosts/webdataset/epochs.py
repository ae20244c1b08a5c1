"""Epochs of WebDataset over local shards, for a benchmark.

usage: epochs.py FOLDER BATCH   each line on stdin is a number of workers, and one epoch with so many is answered by
{"samples": ..., "seconds": ...}
"""

import json
import sys
import time
from pathlib import Path

import torch.utils.data
import webdataset as wds


def loader(folder, batch, workers):
    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    data = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(4 * batch)
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
        count = sum(1 for samples in loaders[workers] for sample in samples if sample["jpg"])
        print(json.dumps({"samples": count, "seconds": time.perf_counter() - began_s}), flush=True)


if __name__ == "__main__":
    read(sys.argv[1], int(sys.argv[2]))
