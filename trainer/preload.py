"""What the launcher `fork` imports once for all ranks of a node, before any thread or device is started."""

import os

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as trainer/__main__.py does, before torch is imported

import torch.distributed.fsdp  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import trainer.run  # noqa: F401
