"""Plain DDP that outlasts its time limit: no step is lost at a stop, and none is done twice.

    python launch.py --nodes 2 --gpus 2 --lead 0:02:00 -- python recipes/any/ddp.py --steps 2000

A small model on random numbers; what makes it go on is marked 1 to 4. It runs by torchrun, or alone, as well.
"""

from __future__ import annotations

import os
import signal

# 1. The word to stop is remembered from the first moment on, and heeded between two steps.
told: list[int] = []
signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum))

import argparse  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A function of step and rank alone: to resume there is no state of the data to keep."""
    inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(step * 100_003 + rank))
    return inputs, inputs.flip(1)


def save(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """By rank 0: whole or not there, whenever this process is killed."""
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)
    if "OUTLAST_PROGRESS" in os.environ:  # 2. `launch.py status` shows it, and three attempts without it end the run
        Path(os.environ["OUTLAST_PROGRESS"]).write_text(f"{step}\n")


def stop_agreed(device: torch.device) -> bool:
    """3. The signal comes to the ranks at different moments: all leave after the same step, or some wait for ever."""
    flag = torch.tensor([len(told)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    for name, alone in (("RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", 29500)):
        os.environ.setdefault(name, str(alone))

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    layers = [torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)]
    model = torch.nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    # 4. A new attempt looks for what the last one has saved.
    path, first = Path(os.environ.get("OUTLAST_RUN_DIR", ".")) / "ddp.pt", 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    ddp = DistributedDataParallel(model)

    for step in range(first + 1, steps + 1):
        inputs, targets = (values.to(device) for values in batch(step, rank))
        loss = torch.nn.functional.mse_loss(ddp(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step} loss {loss.item():.6f}", flush=True)
        stop = stop_agreed(device)
        if rank == 0 and (stop or step % 500 == 0 or step == steps):
            save(path, step, model, optimizer)
        if stop and step < steps:
            dist.barrier()  # rank 0 has saved: a launcher ends the others when one leaves
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python takes handlers away while it ends
            return 75  # go on with me
    dist.barrier()
    return 0


if __name__ == "__main__":
    sys.exit(main())
