"""The runs of the benchmark `stops`: how each contender's ranks are started, and what they have left on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from benchmarks import peers
from benchmarks.stops.rank import (
    ACCUMULATION,
    EVALUATED,
    EVALUATED_EVERY,
    LEARNING_RATE,
    LLAMA,
    MICRO,
    SAVED_EVERY,
    SEED,
    SEQUENCE,
    STEPS,
    WORLD,
)
from settings import dump_yaml

ROOT = Path(__file__).parent.parent.parent
POLL = 0.005  # seconds


class Contender(Protocol):
    name: str

    def write(self, folder: Path) -> None:
        """Whatever a run needs in its folder before it starts."""

    def ranks(self, folder: Path) -> Ranks:
        """Start the ranks, which go on with what is there."""

    def checkpoints(self, folder: Path) -> list[tuple[int, bool]]:
        """Steps of all checkpoints, first the one that a resume would take, each with whether all of it can be read."""

    def weights(self, folder: Path) -> str | None:
        """Digest of the final weights; None: the run is not done."""

    def phase(self, folder: Path) -> str:
        """What the ranks did when they stopped, as far as they tell."""


class Ranks:
    """Processes that find each other by torch's variables. Leaving the context kills what is left of them."""

    def __init__(self, python: str, name: str, folder: Path, blocked: Iterable[signal.Signals], **more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1", **more}
        self.began = time.monotonic()
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(WORLD):
            with open(folder / f"rank-{rank}.log", "ab") as log:
                process = subprocess.Popen(
                    [python, "-m", "benchmarks.stops.rank", name, str(folder)],
                    env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked),
                )
            self.processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        self.codes()

    def signal(self, ranks: Iterable[int]) -> bool:
        """SIGTERM; False when all of them had left."""
        alive = [self.processes[rank] for rank in ranks if self.processes[rank].poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        return bool(alive)

    def wait(self, until: float) -> bool:
        """Until all have left, or the monotonic clock says `until`; True when all have left."""
        while left := any(process.poll() is None for process in self.processes):
            if time.monotonic() >= until:
                break
            time.sleep(POLL)
        return not left

    def codes(self) -> list[int]:
        return [process.wait() for process in self.processes]


def steps_done(folder: Path) -> int:
    """Optimizer steps that the rank which is ahead has completed, over all attempts."""
    return max((file.stat().st_size for file in folder.glob("steps-*")), default=0)


class Outlast:
    name = "outlast"

    def __init__(self, inputs: Path) -> None:
        """`inputs`: a folder that all runs share."""
        self._inputs = inputs
        if not inputs.exists():
            _write_inputs(inputs)

    def write(self, folder: Path) -> None:
        tokenizer, train, evaluation = (
            str(self._inputs / name) for name in ("tokenizer", "train.jsonl", "evaluation.jsonl")
        )
        cache = str(folder / ".prepared")  # else the first run would prepare for all
        recipe = {
            "name": "run",
            "model": {"tokenizer": tokenizer, "config": {"model_type": "llama", **LLAMA}},
            "data": {"train": [train], "evaluation": [evaluation], "seq_len": SEQUENCE, "cache": cache},
            "train": {
                "steps": STEPS,
                "global_batch_size": WORLD * MICRO * ACCUMULATION,
                "micro_batch_size": MICRO,
                "precision": "fp32",
                "seed": SEED,
            },
            "optim": {"lr": LEARNING_RATE},
            "evaluation": {"every": EVALUATED_EVERY, "batches": EVALUATED // (WORLD * MICRO)},
            "checkpoint": {"every": SAVED_EVERY},
            "tensorboard": False,
        }
        (folder / "config.yaml").write_text(dump_yaml(recipe))

    def ranks(self, folder: Path) -> Ranks:
        """As the launcher's shim does, which blocks the stop signals until the trainer's handlers stand."""
        from trainer.claims import claim
        from trainer.stop.signals import STOP_SIGNALS

        attempt = {"OUTLAST_ATTEMPT": str(claim(folder))}
        return Ranks(sys.executable, self.name, folder, STOP_SIGNALS, **attempt)

    def checkpoints(self, folder: Path) -> list[tuple[int, bool]]:
        from trainer.checkpoint import folder_name
        from trainer.checkpoint.lineage import checkpoints_in_line

        saved = folder / "checkpoints"
        return [(point.step, _verifies(saved / folder_name(point))) for point in checkpoints_in_line(folder)]

    def weights(self, folder: Path) -> str | None:
        done = folder / "DONE"
        return str(json.loads(done.read_text())["sha256"]) if done.exists() else None

    def phase(self, folder: Path) -> str:
        from trainer.records import events

        return next((str(event["phase"]) for event in events.read(folder) if event["event"] == "stop"), "")


class Transformers:
    name = "transformers"

    def write(self, folder: Path) -> None:
        pass

    def ranks(self, folder: Path) -> Ranks:
        return Ranks(str(peers.BIN / "python"), self.name, folder, ())

    def checkpoints(self, folder: Path) -> list[tuple[int, bool]]:
        """In the order of transformers' get_last_checkpoint, which takes the largest number in a name."""
        steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoints/checkpoint-*")]
        return [(step, _is_whole(folder, step)) for step in sorted(steps, reverse=True)]

    def weights(self, folder: Path) -> str | None:
        if not _is_whole(folder, STEPS):
            return None
        last = folder / "checkpoints" / f"checkpoint-{STEPS}"
        return hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()

    def phase(self, folder: Path) -> str:
        return ""


def _verifies(checkpoint: Path) -> bool:
    """All of one of Outlast's, by its own reader."""
    from trainer.checkpoint import CheckpointBroken
    from trainer.checkpoint.load import Reader
    from trainer.engines.shard import KINDS

    try:
        with Reader(checkpoint) as reader:
            for name, parameter in reader.manifest.parameters.items():
                for kind in KINDS:
                    reader.read(name, kind, 0, math.prod(parameter.shape))
            for rank in range(WORLD):
                reader.arrays(rank)
    except CheckpointBroken:
        return False
    return True


def _is_whole(folder: Path, step: int) -> bool:
    """Every file that a save of transformers writes for this many ranks is there and can be read."""
    import torch
    from safetensors.torch import load_file

    checkpoint = folder / "checkpoints" / f"checkpoint-{step}"
    try:
        load_file(checkpoint / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", *(f"rng_state_{rank}.pth" for rank in range(WORLD))):
            torch.load(checkpoint / name, weights_only=False)
        state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    except Exception:  # whatever a file that is missing or cut makes of a loader
        return False
    return bool(state["global_step"] == step)


def _write_inputs(folder: Path) -> None:
    """Random words of a small vocabulary: enough for one pass, and the tokenizer of them."""
    from recipes.demo_data import TOKENIZER_CONFIG, train_tokenizer

    chance = random.Random(SEED)
    words = ["".join(chance.choices("abcdefghij", k=6)) for _ in range(500)]
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(train_tokenizer([" ".join(words)]).to_str())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    for name, count in (("train", STEPS * 15), ("evaluation", 2 * EVALUATED)):
        rows = [json.dumps({"text": " ".join(chance.choices(words, k=SEQUENCE))}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
