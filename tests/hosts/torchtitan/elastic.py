"""Any number of data-parallel ranks reads one stream with ShoalDataLoader, saved and loaded by torch's own DCP.

Arguments: URL of texts, folder of the tokenizer, folder for checkpoints. Prints, for each way of reading, the digests
of the sequences in the order of the stream.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from shoal.torchtitan import ShoalDataLoader

SEQ_LEN = 64
url, tokenizer_folder, checkpoints = sys.argv[1:4]
tokenizer = HuggingFaceTokenizer(tokenizer_path=tokenizer_folder)


def loaders(ranks, local_batch_size, **options):
    """One loader for each rank, as the Trainer of that rank builds it."""
    config = ShoalDataLoader.Config(dataset=url, **options)
    return [
        config.build(
            dp_world_size=ranks,
            dp_rank=rank,
            tokenizer=tokenizer,
            seq_len=SEQ_LEN,
            local_batch_size=local_batch_size,
            snapshot_every_n_steps=1,
        )
        for rank in range(ranks)
    ]


def read(made, steps):
    """Digests of the sequences of so many steps: in each the ranks in order are the order of the stream."""
    found = []
    iterators = [iter(loader) for loader in made]
    for _ in range(steps):
        for batches in iterators:
            inputs, labels = next(batches)
            assert inputs["input"].shape == inputs["positions"].shape == labels.shape == (labels.shape[0], SEQ_LEN)
            rows = zip(inputs["input"], inputs["positions"], labels, strict=True)
            found += [hashlib.sha256(b"".join(part.numpy().tobytes() for part in row)).hexdigest()[:16] for row in rows]
    return found


def saved_and_loaded(old, new, name):
    """Every old rank's state through DCP into every new rank's loader; the states before."""
    states = [loader.state_dict() for loader in old]
    dcp.save({"dataloader": old[-1]}, checkpoint_id=str(Path(checkpoints) / name))
    for loader in new:
        dcp.load({"dataloader": loader}, checkpoint_id=str(Path(checkpoints) / name))
    assert all(state == states[0] for state in states), states
    assert all(loader.state_dict() == states[0] for loader in new)
    return states[0]


def elastic(**options):
    """1 rank, then 2, then 3, each going on where the others were."""
    one, two, three = loaders(1, 3, **options), loaders(2, 4, **options), loaders(3, 2, **options)
    stream = read(one, 5)
    saved_and_loaded(one, two, "one-two" + "-".join(map(str, options.values())))
    stream += read(two, 6)
    state = saved_and_loaded(two, three, "two-three" + "-".join(map(str, options.values())))
    return stream + read(three, 4), state


count = len(loaders(1, 1)[0]._dataset)
steps = 15 + 48 + 24
assert steps > 2 * count, f"{count} sequences are too many for the stream to cross the end of two epochs"
found = {"count": count, "plain": read(loaders(1, 1), steps)}
found["elastic"], found["state"] = elastic()
found["elastic workers"], _ = elastic(num_workers=1)
for shuffle in ("blocks", "none"):
    found[shuffle] = read(loaders(1, 1, shuffle=shuffle), count)
found["finite"] = read(loaders(1, 1, infinite=False), count)
finite = iter(loaders(2, 4, infinite=False)[0])
found["finite steps of 8"] = sum(1 for _ in finite)
print(json.dumps(found))
