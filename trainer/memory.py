"""When a rank has no memory left: a line in the events says so, from which the supervisor knows the cause."""

from __future__ import annotations

import resource

import torch

from trainer.events import Events
from trainer.runtime import Runtime

# The words of torch's CPU allocator, which raises a bare RuntimeError.
_ON_THE_HOST = "DefaultCPUAllocator: can't allocate memory"


def note_out_of_memory(error: RuntimeError | MemoryError, runtime: Runtime, phase: str) -> None:
    """By the rank that it befalls, whichever that is; any other error is left alone."""
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    if not (on_gpu or isinstance(error, MemoryError) or _ON_THE_HOST in str(error)):
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    values = {
        "rank": runtime.rank,
        "phase": phase,
        "device": "cuda" if on_gpu else "cpu",
        "allocated": torch.cuda.memory_allocated() if on_gpu else peak,
        "reserved": torch.cuda.memory_reserved() if on_gpu else peak,
    }
    Events(runtime.run_dir, runtime.epoch, active=True).write("oom", **values, error=str(error).partition("\n")[0])
