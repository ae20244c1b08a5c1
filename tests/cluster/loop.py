"""A live training loop in a pod: prints when each step had its batch, and a digest of all bytes so far.

Two runs of the same number of steps print the same digests, whatever happened to the cluster meanwhile: the order of
samples depends on the data set and the seed alone. A step takes --step-s at least, the time that stands for a GPU's.
Any error ends it, with its traceback: a reader is to notice nothing of what the tests break but a miss.
"""

from __future__ import annotations

import argparse
import hashlib
import time

from shoal.torch import DataLoader, Dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--step-s", type=float, default=0.0)
    arguments = parser.parse_args()
    data = Dataset("shoal://loop")
    loader = DataLoader(data, batch_size=4, shuffle=True, collate_fn=list)
    chain = hashlib.sha256()
    step = epoch = 0
    while True:
        loader.set_epoch(epoch)
        for batch in loader:
            for sample in batch:
                chain.update(sample["data"])
            step += 1
            print(step, f"{time.time():.3f}", chain.hexdigest()[:16], flush=True)
            if step == arguments.steps:
                print("end", loader.stats(), flush=True)
                return
            time.sleep(arguments.step_s)
        epoch += 1


main()
