"""Writes a data set with Streaming's own MDSWriter, plain and compressed; prints its samples as JSON.

usage: write.py FOLDER   makes FOLDER/plain and FOLDER/zstd and prints [[number, digest of the content], ...]
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import streaming

SAMPLES = 60


def content(number):
    chance = random.Random(number)
    return chance.randbytes(chance.randrange(1, 40_000))


def write(folder, compression):
    columns = {"number": "int", "data": "bytes"}
    with streaming.MDSWriter(
        out=str(folder), columns=columns, size_limit=300_000, hashes=["xxh64"], compression=compression
    ) as writer:
        for number in range(SAMPLES):
            writer.write({"number": number, "data": content(number)})


if __name__ == "__main__":
    write(Path(sys.argv[1], "plain"), None)
    write(Path(sys.argv[1], "zstd"), "zstd")
    print(json.dumps([[number, hashlib.sha256(content(number)).hexdigest()] for number in range(SAMPLES)]))
