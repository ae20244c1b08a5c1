"""Reads shards with WebDataset in several ways; prints {way: [[key, digest of the content], ...], ...} as JSON.

usage: read.py WAY,... URL...   WAY: plain, pipeline, or the start method of two workers: fork, spawn, forkserver

Only this process imports `shoal.webdataset`: what a spawned worker knows of it comes with the data set.
"""

import hashlib
import json
import sys

import torch.utils.data
import webdataset as wds


def keyed(sample):
    return sample["__key__"], hashlib.sha256(sample["bin"]).hexdigest()


def data_set(way, urls):
    if way == "pipeline":
        return wds.DataPipeline(wds.SimpleShardList(urls), wds.tarfile_to_samples(), wds.map(keyed))
    return wds.WebDataset(urls, shardshuffle=False).shuffle(10).map(keyed)


def read(way, urls):
    samples = data_set(way, urls)
    if way not in ("plain", "pipeline"):
        samples = torch.utils.data.DataLoader(
            samples, batch_size=None, num_workers=2, multiprocessing_context=way, timeout=240
        )
    return [tuple(sample) for sample in samples]


def main(ways, urls):
    import shoal.webdataset  # noqa: F401

    # One string is expanded by WebDataset (`{00..03}`), a list is taken as it is.
    wanted = urls[0] if len(urls) == 1 else urls
    print(json.dumps({way: read(way, wanted) for way in ways}))


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
