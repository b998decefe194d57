"""One rank that trains, saves and loads as it is told, line by line: a fault may come in the middle of each.

The process that forks the ranks imports this once: the model is built, and no thread is started yet.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from settings import ConfigError
from trainer import claims
from trainer.checkpoint import Point
from trainer.checkpoint.load import load_newest
from trainer.checkpoint.recover import finish_cut_save
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.rng import restore_rng
from trainer.checkpoint.save import Content, Saver
from trainer.checkpoint.writers import SaveFailed, Writers
from trainer.data.batches import MicroBatch
from trainer.engines.engine import make_engine
from trainer.model.weights import hollow
from trainer.plan import batch_layout
from trainer.runtime import start
from trainer.schema import Checkpoint, Optim, Train, TrainConfig
from trainer.shape import Model
from trainer.sources import Data

TOKENS = 16
VOCABULARY = 512
SHAPE = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
CONFIG = TrainConfig(
    "saving",
    Model(config=SHAPE),
    Data(["rows"], TOKENS),
    Train(global_batch_size=2, steps=100, precision="fp32"),
    Optim(lr=1e-3),
)
MODEL = hollow(CONFIG.model, CONFIG.train.seed, torch.float32)
PR_SET_PTRACER, ANY = 0x59616D61, -1


class Rank:
    def __init__(self, run_dir: Path, address: str) -> None:
        line = socket.socket(socket.AF_UNIX)
        line.connect(f"\0{address}")
        self._line = line.makefile("rw")
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_long(ANY), 0, 0, 0)  # strace is no parent of ours
        self._tell(rank=int(os.environ["RANK"]))
        self._runtime = start(run_dir, longest_wait=60)
        layout = batch_layout(CONFIG.train, self._runtime.world_size)
        self._engine = make_engine(CONFIG, layout, MODEL, self._runtime)
        self._writers = Writers(self._runtime)
        self._saver: Saver | None = None

    def obey(self) -> None:
        while line := self._line.readline():
            verb, *words = json.loads(line)
            self._tell(**getattr(self, verb)(*words))

    def _tell(self, **what: Any) -> None:
        self._line.write(json.dumps(what) + "\n")
        self._line.flush()

    # --- what it can be told ---

    def ready(self) -> dict[str, Any]:
        """It has met its peers, and waits."""
        return {}

    def load(self, run_dir: str | None = None) -> dict[str, Any]:
        """What this attempt goes on from, as the trainer does it; or the newest of a run that is just looked at."""
        runtime = replace(self._runtime, run_dir=Path(run_dir)) if run_dir else self._runtime
        self._draw()
        try:
            if not run_dir:
                finish_cut_save(runtime, self._writers)
            near = (lambda _: None) if run_dir else self._writers.memory.path_of
            resumed = load_newest(runtime, self._engine.shards, lambda manifest: None, near)
        except ConfigError as error:
            return {"refused": str(error)}
        if resumed:
            self._step = resumed.point.step
            assert resumed.rng is not None
            restore_rng(resumed.rng)
        if not run_dir:
            self._writers.memory.forget_earlier()
            self._saver = Saver(runtime, self._engine, self._writers)
        if runtime.leads and not run_dir:
            claims.note_resume(runtime.run_dir, runtime.epoch, resumed.point if resumed else Point(0, 0), 0)
        return {**self._state(), "passed_over": resumed.passed_over if resumed else []}

    def train(self) -> dict[str, Any]:
        """One step. What it sees is drawn from the generators that a checkpoint restores."""
        tokens = torch.randint(VOCABULARY, (1, TOKENS + 1))
        batch = MicroBatch.of(tokens[:, :-1], tokens[:, 1:], torch.arange(TOKENS)[None])
        self._engine.backward(batch, TOKENS * self._runtime.world_size, last=True)
        assert torch.isfinite(self._engine.step(1e-2, self._step + 1))
        self._step += 1
        return self._state()

    def save(self) -> dict[str, Any]:
        content = Content(
            layout={"engine": "ddp", "world_size": self._runtime.world_size}, config={}, data="", state={}
        )
        assert self._saver is not None
        try:
            self._saver.begin(self._step, content)
            self._saver.finish()
        except SaveFailed as error:
            return {"failed": str(error)}
        return {"saved": self._step}

    def clean_up(self) -> dict[str, Any]:
        """As the loop does after a save, and at the end."""
        if self._runtime.leads:
            retention = Retention(self._runtime.run_dir, self._runtime.epoch, Checkpoint(keep=1))
            try:
                retention.clean_up()
            except OSError as error:
                return {"kept": str(error)}
            retention.finish()
        return {}

    def hold(self, index: int) -> dict[str, Any]:
        """The thread that is the index-th to begin from now on says so, and waits until it is told to go on."""
        order = itertools.count(1)

        def begins(*_: object) -> None:
            sys.setprofile(None)
            if next(order) == index:
                self._tell(thread=threading.get_native_id())
                self._line.readline()

        threading.setprofile(begins)
        return {}

    def _draw(self) -> None:
        """The state at step 0."""
        torch.manual_seed(self._runtime.rank)
        chance = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for shard in self._engine.shards():
                for kept in shard.tensors.values():
                    kept.copy_(torch.zeros(len(kept[:])))
                shard.tensors["weights"].copy_(torch.randn(shard.stop - shard.start, generator=chance) / 10)
                shard.step.zero_()
        self._step = 0

    def _state(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for shard in self._engine.shards():
            for kept in (*shard.tensors.values(), shard.step):
                digest.update(kept.detach().reshape(-1).numpy())
        return {"step": self._step, "digest": digest.hexdigest()}
