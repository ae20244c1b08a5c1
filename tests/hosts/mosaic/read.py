"""Reads data sets with MosaicML Streaming; prints the samples of each, [[number, digest of the content], ...], as JSON.

usage: read.py START-METHOD REMOTE LOCAL ...   "none" reads in this process, "fork" has two workers, "spawn" one (which
imports Streaming anew: some 15 s of a processor)
"""

import hashlib
import json
import sys

import streaming
import torch.utils.data

import shoal.mosaic  # noqa: F401


def read(start_method, remote, local):
    data_set = streaming.StreamingDataset(
        remote=remote, local=local, shuffle=True, batch_size=4, download_timeout=30, download_retry=1
    )
    workers = {"none": 0, "fork": 2, "spawn": 1}[start_method]
    context = start_method if workers else None
    loader = torch.utils.data.DataLoader(
        data_set, batch_size=4, collate_fn=list, num_workers=workers, multiprocessing_context=context
    )
    samples = [sample for batch in loader for sample in batch]
    return [[int(sample["number"]), hashlib.sha256(sample["data"]).hexdigest()] for sample in samples]


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps([read(*given[start : start + 3]) for start in range(0, len(given), 3)]))
