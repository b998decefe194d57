"""accelerate's FSDP2: `python accelerate_fsdp.py FOLDER`, a process a rank. As in Outlast, gradients meet in fp32.

On the CPU accelerate 1.15 passes the plugin over without a word and makes DDP of it: so it is told that this is FSDP.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy


def main(folder: Path) -> None:
    options, gate = common.settings(folder), common.Gate()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32),
    )
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", fsdp_plugin=plugin)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    network = common.model(options)
    loader = torch.utils.data.DataLoader(common.dataset(options), batch_size=options["rows"])
    model, adamw, batches = accelerator.prepare(network, common.optimizer(network, options), loader)
    if not isinstance(model, FSDPModule):
        raise TypeError(f"accelerate made a {type(model).__name__} of the model")
    gate.watch(model)
    gate.step()
    for batch in batches:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), options["clip"])
        adamw.step()
        adamw.zero_grad()
        gate.values["loss"] = loss.item()
        gate.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
