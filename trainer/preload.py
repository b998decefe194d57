"""What the launcher `fork` imports once for all ranks of a node: the slow imports, before any thread or device starts."""

import torch.distributed.fsdp
import torch.nn.parallel
import transformers.models.auto.modeling_auto
import transformers.models.llama.modeling_llama  # noqa: F401

import trainer.run  # noqa: F401
