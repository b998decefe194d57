"""The runs of the experiment, each a recipe that `python -m trainer` trains; those that are done are read again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import xxhash

from benchmarks.forgetting.figures import Course
from benchmarks.processes import Unable, last_line
from settings import dump_yaml

ROOT = Path(__file__).parent.parent.parent
SHAPE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
SEQ_LEN, BATCH = 128, 16  # tokens; sequences
BASE_RATE = 3e-3


@dataclass(frozen=True)
class Size:
    """How long the runs are."""

    base: int
    """Steps of the pre-training."""
    domain: int
    """Steps on the domain."""
    curve: int
    """Evaluations of a run whose curve is shown."""
    batches: int
    """Of one evaluation, of each held-out set."""
    sequences: int
    """For the Fisher information."""
    seeds: int
    tries: int | None
    """Settings of an arm from which one is chosen; None: all."""


FULL = Size(base=1000, domain=160, curve=8, batches=12, sequences=256, seeds=3, tries=None)
QUICK = Size(base=8, domain=4, curve=2, batches=1, sequences=4, seeds=1, tries=1)


@dataclass(frozen=True)
class Arm:
    """One way to train on the domain."""

    lr: float
    replay: float = 0.0
    """Share of general tokens."""
    method: str | None = None
    strength: float = 0.0

    @property
    def words(self) -> str:
        replayed = f", replay {self.replay:.0%}" if self.replay else ""
        held = f", {self.method} {self.strength:g}" if self.method else ""
        return f"lr {self.lr:g}{replayed}{held}"


class Place:
    """The folder of all runs and their data; a run's own is named by what makes it."""

    def __init__(self, folder: Path, size: Size, corpus: str) -> None:
        """`corpus`: its fingerprint; it lies in folder/corpus."""
        self.folder, self.size, self.corpus = folder, size, corpus
        self._texts = folder / "corpus"

    # --- recipes ---

    def base(self, seed: int) -> dict[str, Any]:
        size = self.size
        return {
            "name": f"base-{seed}",
            "model": {"tokenizer": str(self._texts / "tokenizer"), "config": SHAPE},
            "data": self._data({"general": "train"}),
            "train": {"steps": size.base, **self._train(seed)},
            "optim": {"lr": BASE_RATE, "weight_decay": 0.1},
            "evaluation": {"every": size.base, "batches": size.batches},
            "tensorboard": False,
        }

    def domain(self, arm: Arm, seed: int, shown: bool) -> dict[str, Any]:
        """`shown`: with a whole curve, not its ends alone."""
        size = self.size
        sources = {"domain": "train", **({"general": "kept"} if arm.replay else {})}
        mixture = {"domain": 1 - arm.replay, **({"general": arm.replay} if arm.replay else {})}
        recipe = {
            "name": f"domain-{seed}",
            "model": {"path": str(self.run(self.base(seed)) / "export")},
            "data": self._data(sources),
            "train": self._train(seed),
            "stages": [{"name": "domain", "mixture": mixture, "steps": size.domain, "optim": {"lr": arm.lr}}],
            "evaluation": {
                "every": size.domain // size.curve if shown else size.domain,
                "batches": size.batches,
                "best": "domain",
                "limits": {"general": 0.05},
            },
            "tensorboard": False,
            "export": False,
        }
        if arm.method:
            recipe["forgetting"] = {"method": arm.method, "strength": arm.strength}
        if arm.method == "ewc":
            recipe["forgetting"] |= {"data": [self._file("general", "kept")], "sequences": size.sequences}
        return recipe

    def _train(self, seed: int) -> dict[str, Any]:
        return {"global_batch_size": BATCH, "micro_batch_size": BATCH, "seed": seed, "precision": "fp32"}

    def _data(self, train: Mapping[str, str]) -> dict[str, Any]:
        """`train`: the split of each kind."""
        return {
            "train": {kind: {"files": [self._file(kind, split)]} for kind, split in train.items()},
            "evaluation": {kind: {"files": [self._file(kind, "held_out")]} for kind in ("domain", "general")},
            "seq_len": SEQ_LEN,
            "cache": str(self.folder / "prepared"),
        }

    def _file(self, kind: str, split: str) -> str:
        return str(self._texts / f"{kind}_{split}.jsonl")

    # --- runs ---

    def run(self, recipe: Mapping[str, Any]) -> Path:
        """Its folder."""
        made_of = json.dumps([recipe, self.corpus, self._trainer], sort_keys=True)
        return self.folder / "runs" / f"{recipe['name']}-{xxhash.xxh3_64_hexdigest(made_of.encode())}"

    @cached_property
    def _trainer(self) -> list[str]:
        """What trains: changes that are not committed are not seen."""
        git = ["git", "rev-parse", "HEAD:trainer"]
        return [version("torch"), subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()]

    def train(self, recipes: Iterable[Mapping[str, Any]]) -> None:
        """All that are not done, as many at a time as there are cores. Raises Unable."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(self._train_one, recipes))

    def _train_one(self, recipe: Mapping[str, Any]) -> None:
        folder = self.run(recipe)
        if (folder / "DONE").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(dump_yaml(recipe))
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-m", "trainer", str(folder / "config.yaml")]
        done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise Unable(f"forgetting: {folder.name}: {last_line(done.stderr) or last_line(done.stdout)}")
        shutil.rmtree(folder / "checkpoints")  # 24 MB, which nothing reads again
        print(f"  {folder.name}: {last_line(done.stdout)}", flush=True)

    def course(self, recipe: Mapping[str, Any]) -> Course:
        """What a run that is done has told."""
        events = [json.loads(line) for line in (self.run(recipe) / "events.jsonl").read_text().splitlines()]
        looks = {one["step"]: one["losses"] for one in events if one["event"] == "evaluation"}  # a resume may repeat
        seconds = [one["seconds"] for one in events if one["event"] == "step"]
        return Course(
            steps=sorted(looks),
            general=[looks[step]["general"] for step in sorted(looks)],
            domain=[looks[step]["domain"] for step in sorted(looks)],
            seen=next(one["seen"] for one in reversed(events) if one["event"] == "done"),
            step_seconds=median(seconds),
        )
