"""What batches of ShoalDataLoader hold, and what it refuses. Arguments: URL of texts, folder of the tokenizer."""

import json
import sys

from torchtitan.components.tokenizer import HuggingFaceTokenizer

from shoal.torchtitan import ShoalDataLoader
from shoal_core.errors import BadRequest

SEQ_LEN = 16
url, tokenizer_folder = sys.argv[1:3]
tokenizer = HuggingFaceTokenizer(tokenizer_path=tokenizer_folder)


def build(config, **changes):
    given = {"tokenizer": tokenizer, "seq_len": SEQ_LEN, "local_batch_size": 1, "dp_rank": 0, "dp_world_size": 1}
    return config.build(**(given | changes))


def refusal(call):
    try:
        call()
    except BadRequest as error:
        return str(error)
    return None


loader = build(ShoalDataLoader.Config(dataset=url, shuffle="none", infinite=False))
batches = [(inputs, labels) for inputs, labels in loader]
tokens = [token for inputs, _ in batches for token in inputs["input"][0].tolist()]
positions = [position for inputs, _ in batches for position in inputs["positions"][0].tolist()]
labels = [label for _, labels in batches for label in labels[0].tolist()]


class Nameless:
    eos_id = 1

    def encode(self, *_, **__):
        return [0, 1]


state = build(ShoalDataLoader.Config(dataset=url, seed=1)).state_dict()
print(
    json.dumps(
        {
            "begin": tokenizer.bos_id,
            "end": tokenizer.eos_id,
            "tokens": tokens,
            "positions": positions,
            "labels": labels,
            "refusals": [
                refusal(lambda: build(ShoalDataLoader.Config())),
                refusal(lambda: build(ShoalDataLoader.Config(dataset="c4", dataset_path=url))),
                refusal(lambda: build(ShoalDataLoader.Config(dataset=url), tokenizer=Nameless())),
                refusal(lambda: build(ShoalDataLoader.Config(dataset=url)).load_state_dict(state)),
                refusal(
                    lambda: build(ShoalDataLoader.Config(dataset=url), seq_len=8).load_state_dict(state | {"seed": 0})
                ),
            ],
        }
    )
)
