"""Our configurations of Llama 3, built as a Trainer builds them: model on the meta device, meshes over fake ranks.

Argument: name and ranks of each, as `name=ranks`. TorchTitan parallelises each model over a fake process group, so that
degrees, head counts and sequence lengths must fit each other; no parameter takes memory.
"""

import json
import sys

import torch
from torchtitan.config import TORCH_DTYPE_MAP, ConfigManager
from torchtitan.tools import utils

utils.device_type, utils.device_module = "cpu", torch.cpu  # before other modules copy them

from torchtitan.components.quantization import float8  # noqa: E402
from torchtitan.distributed import ParallelDims  # noqa: E402

float8.has_cuda_capability = lambda *_: True  # the configuration of 405B asks for the GPU at hand

found = {}
for name, ranks in (argument.split("=") for argument in sys.argv[1:]):
    options = ["--module", "shoal.torchtitan", "--config", name, "--dataloader.dataset", "s3://bucket/text"]
    config = ConfigManager().parse_args(options)
    torch.distributed.init_process_group("fake", rank=0, world_size=int(ranks))
    dims = ParallelDims.from_config(config.parallelism, int(ranks))
    model_config = config.model_spec.model
    model_config.update_from_config(config=config)
    with torch.device("meta"), utils.set_default_dtype(TORCH_DTYPE_MAP[config.training.dtype]):
        model = model_config.build()
    model.verify_module_protocol()
    parameters, _ = model_config.get_nparams_and_flops(model, config.training.seq_len)
    config.compile.enable = False  # compiles nothing that is on the meta device
    config.model_spec.parallelize_fn(
        model,
        parallel_dims=dims,
        training=config.training,
        parallelism=config.parallelism,
        compile_config=config.compile,
        ac_config=config.activation_checkpoint,
        dump_folder=config.dump_folder,
    )
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    found[name] = {
        "parameters": parameters,
        "largest part": local,
        "batch ranks": dims.get_mesh("batch").size() if dims.dp_enabled else 1,
        "loader": type(config.dataloader).__qualname__,
        "validation": type(config.validator.dataloader).__qualname__,
        "dataset": config.dataloader.dataset,
    }
    torch.distributed.destroy_process_group()
print(json.dumps(found))
