"""submitit with a callable that can be checkpointed: `python submitit_run.py FOLDER` submits it.

At SIGUSR2 submitit calls checkpoint() on the first task, requeues the job, and calls what checkpoint() has returned.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import common
import submitit


class Training:
    """Saves every few steps, and when it is interrupted: unless that comes in the middle of an update."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        log = common.Log(self.folder)
        log.start()
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        options = common.settings(self.folder)
        self.network = common.model(options)
        log.tell("imported")
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        dist.init_process_group("gloo")
        self.optimizer = common.optimizer(self.network, options)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, options["steps"])
        self.step, self.updating = 0, False
        self.load()
        data, size, ranks = common.dataset(options), options["micro_batch_size"], options["ranks"]
        ddp = DistributedDataParallel(self.network)
        log.tell("ready")
        while self.step < options["steps"]:
            first = (self.step * ranks + dist.get_rank()) * size
            items = [data[index % len(data)]["input_ids"] for index in range(first, first + size)]
            tokens = torch.stack(items)
            ddp(input_ids=tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.updating = True
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.updating = False
            log.tell("step", step=self.step)
            if self.step % options["every"] == 0 and dist.get_rank() == 0:
                self.save()
        log.tell("done")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        if not getattr(self, "updating", True):
            self.save()
        return submitit.helpers.DelayedSubmission(Training(self.folder))

    @property
    def path(self) -> Path:
        return self.folder / "training.pt"

    def parts(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self) -> None:
        import torch

        state = {name: part.state_dict() for name, part in self.parts().items()} | {"step": self.step}
        torch.save(state, self.path.with_suffix(".tmp"))
        os.replace(self.path.with_suffix(".tmp"), self.path)

    def load(self) -> None:
        import torch

        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.step = state.pop("step")
            for name, part in self.parts().items():
                part.load_state_dict(state[name])


def main(folder: Path) -> None:
    options = common.settings(folder)
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster="slurm", slurm_max_num_timeout=20)
    executor.update_parameters(
        name=folder.name,
        nodes=1,
        tasks_per_node=options["ranks"],
        timeout_min=options["minutes"],
        slurm_partition="preempt",
        slurm_signal_delay_s=90,
    )
    print(executor.submit(Training(folder)).job_id)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
