"""The trainer of a run whose `train.kernels` are computed on the CPU, by Triton's interpreter:

KERNELS=FOLDER python -m tests.trainer.with_interpreted_kernels CONFIG

FOLDER holds liger-kernel and triton.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any


def interpret() -> None:
    """From here on kernels of Triton run on the CPU, and `train.kernels` asks for no GPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.append(os.environ["KERNELS"])
    import numpy as np
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime import interpreter

    # CUDA's own functions have no body here: Triton's stand for them.
    libdevice.rsqrt = lambda x: tl.rsqrt(x)
    libdevice.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1
    plain = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        """A compiled kernel is given a number as fp32; the interpreter leaves it Python's."""
        if not isinstance(argument, float):
            return plain(argument)
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = converted

    from trainer.model import kernels

    def check(settings: Any, device: Any) -> None:
        kernels.check_family(settings)
        kernels.try_out(device)

    kernels.check = check


if __name__ == "__main__":
    interpret()
    sys.argv[0] = "trainer"
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
