"""A cold process that resumes and makes one step: python -m benchmarks.gpu.resumed ours|hf FOLDER ATTENTION STARTED.

Prints the seconds of its phases as JSON. STARTED: Unix seconds at which it was called.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_BEGAN = time.time()


def main(who: str, folder: str, attention: str, started: str) -> None:
    called = float(started)
    marks = {"python": _BEGAN - called}
    last = _BEGAN

    def mark(what: str) -> None:
        nonlocal last
        now = time.time()
        marks[what], last = now - last, now

    import torch

    from benchmarks.gpu.place import Place
    from benchmarks.gpu.saving import CASE

    reduced = not torch.cuda.is_available()
    place = Place(reduced, time.monotonic() + 600, Path(folder).parent, lambda _: None, attention)
    case = CASE.at(place)
    (ours if who == "ours" else trainers)(case, place, folder, mark)
    place.finish()
    mark("first step")
    print(json.dumps({**{what: round(spent, 3) for what, spent in marks.items()}, "all": time.time() - called}))


def ours(case, place, folder, mark):  # type: ignore[no-untyped-def]
    """As trainer/run.py goes on, but for its data."""
    import torch

    from benchmarks.case import LR
    from benchmarks.gpu.ours import micro_batch, rank_batch, settings
    from trainer.checkpoint.load import load_newest
    from trainer.engines.engine import make_engine
    from trainer.model import recompute
    from trainer.model.weights import hollow
    from trainer.plan import batch_layout
    from trainer.runtime import start

    mark("imports")
    runtime = start(Path(folder), 3600.0)
    mark("device and process group")
    config = settings(case, place)
    model = hollow(config.model, config.train.seed, torch.float32)
    recompute.enable(model, config.train)
    engine = make_engine(config, batch_layout(config.train, 1), model, runtime)
    engine.module.train()
    mark("model and engine")
    assert load_newest(runtime, engine.shards, lambda _: None, lambda _: None) is not None, folder
    engine.refresh()
    mark("load")
    batch = rank_batch([micro_batch(case.micro, case.tokens, model.config.vocab_size, None, 0)])  # type: ignore[union-attr,arg-type]
    engine.backward(batch.micro_batches[0].to(runtime.device), batch.valid_tokens, last=True)
    float(engine.step(LR, 1))


def trainers(case, place, folder, mark):  # type: ignore[no-untyped-def]
    from benchmarks.gpu.peers import HfTrainer, pace_of

    pace_of(place, [])  # imports Trainer's part of transformers
    mark("imports")
    from transformers import TrainerCallback

    class First(TrainerCallback):
        def on_step_begin(self, *_, **__):  # type: ignore[no-untyped-def]
            place.finish()
            mark("model, Trainer and load")

    HfTrainer(case, place).run(First, steps=2, resume=folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
