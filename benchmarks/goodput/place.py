"""Where the goodput of Outlast and its peers is measured: a pocket cluster of one node, one model, the same tokens."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Unable, last_line
from envs.pocket import Pocket, up

NAME = "pocket-goodput"
RANKS, MICRO_BATCH, SEQ_LEN = 2, 2, 128
EVERY = 50
"""Steps between two saves, for all alike."""
LR = 1e-3
SHAPE = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
"""4.8 million parameters."""


@dataclass
class Stage:
    pocket: Pocket
    work: Path
    data: Path
    """The demo's texts and tokenizer."""
    tokens: Path
    """Sequences for the peers, in the order in which Outlast reads them."""

    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in self.pocket.env().items() if not name.startswith("PYTHON")}
        return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def call(self, *argv: str, cwd: Path) -> str:
        """Raises Unable with its last words."""
        done = subprocess.run(argv, env=self.env(), cwd=cwd, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise Unable(f"{Path(argv[1]).name}: {last_line(done.stderr or done.stdout)}")
        return done.stdout


def outlast_recipe(data: Path, cache: Path, steps: int) -> dict[str, Any]:
    """The peers write neither TensorBoard nor an export."""
    return {
        "name": "outlast",
        "model": {"tokenizer": str(data / "tokenizer"), "config": SHAPE},
        "data": {"train": [str(data / "train.jsonl")], "seq_len": SEQ_LEN, "cache": str(cache)},
        "train": {"steps": steps, "global_batch_size": RANKS * MICRO_BATCH, "precision": "fp32"},
        "optim": {"lr": LR},
        "checkpoint": {"every": EVERY},
        "tensorboard": False,
        "export": False,
    }


def set_stage(work: Path, steps: int) -> Stage:
    """The cluster and the data. Raises Unable."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        raise Unable("no Slurm is installed here, on which runs could be preempted")
    from recipes.demo_data import make  # it imports what the runner does not need before it measures

    work.mkdir(parents=True, exist_ok=True)
    data, tokens = work / "data", work / f"tokens-{steps}.npy"
    make(data)
    _write_tokens(outlast_recipe(data, work / "prepared", steps), work / "prepared", tokens)
    return Stage(_cluster(work), work, data, tokens)


def _write_tokens(recipe: dict[str, Any], cache: Path, file: Path) -> None:
    import numpy as np

    from trainer.config import resolve
    from trainer.data.order import batch_indices
    from trainer.data.prepare import prepare

    config = resolve(recipe, "goodput")
    prepared = prepare(config.data, config.model.tokenizer_folder, cache, "train")
    steps, batch = config.train.steps or 0, config.train.global_batch_size
    order = [index for step in range(steps) for index in batch_indices(step, batch, prepared.sequences, 0)]
    np.save(file, np.concatenate([prepared.sequence(index).inputs for index in order]).astype(prepared.manifest.dtype))


def _cluster(work: Path) -> Pocket:
    """One node, whose prolog and epilog write down when a job gets it and when it is free again.

    With `preempt_send_user_signal`, the kindest setting for the peers: without it nothing but SIGTERM announces a
    preemption, at which neither Lightning nor submitit saves.
    """
    pocket = up(NAME, nodes=1, gpus=RANKS)
    options = ["SlurmctldParameters=preempt_send_user_signal"]
    for what in ("prolog", "epilog"):
        script = work / f"{what}.sh"
        script.write_text(f'#!/bin/sh\necho "{what} $SLURM_JOB_ID $(/bin/date +%s.%N)" >>{work}/stamps.txt\n')
        script.chmod(0o755)
        options.append(f"{what.capitalize()}={script}")
    written = pocket.slurm_conf.read_text()
    pocket.slurm_conf.write_text(written + "".join(f"{option}\n" for option in options if option not in written))
    pocket.stop_controller()
    pocket.start_controller()
    pocket.ask("scontrol", "reconfigure")
    pocket.wait_ready()
    return pocket


def spans(work: Path, since: float) -> dict[str, list[tuple[float, float]]]:
    """When each job had the node, unix seconds, oldest first; a requeued job did more than once."""
    found: dict[str, list[tuple[float, float]]] = {}
    began: dict[str, float] = {}
    for line in (work / "stamps.txt").read_text().splitlines():
        what, job, time = line.split()
        if what == "prolog":
            began[job] = float(time)
        elif job in began and began[job] > since:
            found.setdefault(job, []).append((began.pop(job), float(time)))
    return found
