"""The trainer, or another module, with a DeepSpeed that swaps tensors of a kilobyte too:

python -m tests.trainer.with_small_swaps [MODULE] CONFIG [MORE]

It leaves in memory what is below a megabyte: that is all of a tiny model.
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_param_swapper

    for module in (optimizer_utils, partitioned_param_swapper):
        module.MIN_AIO_BYTES = 1024
    name = sys.argv.pop(1) if sys.argv[1].startswith("tests.") else "trainer"
    sys.argv[0] = name
    runpy.run_module(name, run_name="__main__", alter_sys=True)
