"""The run of one rank, from its config to its exit code. Reads downwards as it happens."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from durable import write_atomic
from settings import ConfigError, to_plain
from trainer import claims, config, events, exits
from trainer.board import Board
from trainer.checkpoint import folder_name
from trainer.checkpoint.format import Manifest
from trainer.checkpoint.load import Resumed, load_fork, load_newest
from trainer.checkpoint.rng import derive_rng, restore_rng
from trainer.checkpoint.save import Content, Fenced, SaveFailed, Saver, remove_leftovers
from trainer.claims import Point
from trainer.config import TrainConfig, differences
from trainer.data.batches import Batches, RankBatch
from trainer.data.prepare import cache_folder, prepare
from trainer.data.prepared import Prepared
from trainer.engines import make_engine
from trainer.engines.engine import KINDS
from trainer.evaluation import evaluate, to_device
from trainer.events import Events
from trainer.export import export
from trainer.lead import LeadTime
from trainer.model import build
from trainer.model_config import check_vocabulary, folder_config
from trainer.plan import batch_layout, total_steps
from trainer.runtime import Runtime, start
from trainer.schedule import learning_rate
from trainer.stop import Agreement, Stop

T = TypeVar("T")


class Diverged(Exception):
    """Loss or gradient is not finite: nothing of this step may be kept."""


@dataclass
class Progress:
    """The state of the loop: integers, and nothing else."""

    step: int = 0
    """Optimizer steps that are done."""
    tokens_seen: int = 0
    evaluated: int = -1
    """Step after which the last evaluation was made."""


def run(config_path: Path) -> int:
    """One rank of one attempt. Returns its exit code. Raises ConfigError."""
    run_dir = Path(os.environ.get("OUTLAST_RUN_DIR") or config_path.parent).resolve()
    settings = config.read(config_path)
    if (run_dir / "DONE").exists():
        return exits.DONE
    if settings.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    runtime = start(run_dir)
    training = Training(settings, runtime)
    try:
        code = training.train()
    except Fenced as error:
        training.say(str(error))
        code = exits.FENCED
    except (Diverged, SaveFailed) as error:
        print(f"outlast: {error}", file=sys.stderr)
        return exits.CRASHED
    # The ranks leave together, and with one code: the commit is behind them.
    code = runtime.max(code)
    runtime.barrier()
    if code == exits.DONE and runtime.leads:  # the others are free: an export may take longer than they would wait
        training.finish()
    return code


class Training:
    def __init__(self, settings: TrainConfig, runtime: Runtime) -> None:
        self.settings, self.runtime = settings, runtime
        self.exact = together(runtime, self.exact_now)
        # 1. Data: one rank prepares what is not there yet, all open it.
        self.layout = batch_layout(settings.train, runtime.world_size)
        self.data = self.prepared("train")
        self.held_out = self.prepared("evaluation") if settings.evaluation.every else None
        self.total = total_steps(settings.train, self.data.sequences)
        self.batches = Batches(self.data, self.layout, settings.train.seed, runtime.rank)
        # 2. The model, the same on every rank, and the engine that spreads it.
        model = together(runtime, lambda: self.build_model())
        self.engine = make_engine(settings, model, runtime)
        self.engine.module.train()
        # 3. What happened before, and where it goes on.
        self.progress = Progress()
        self.safe: Progress | None = None  # what the newest checkpoint holds
        self.saver = Saver(runtime, self.engine, settings.checkpoint.keep)
        self.lead = LeadTime(
            events.read(runtime.run_dir) if runtime.leads else [],
            4 * len(KINDS) * sum(p.numel() for p in model.parameters()),
        )
        self.events = Events(runtime.run_dir, runtime.epoch, runtime.leads)
        self.committed = self.resume()
        self.stop = Stop(runtime, self.lead)

    # --- before the first step ---

    def prepared(self, split: Any) -> Prepared:
        cache = cache_folder(self.settings.data, self.runtime.run_dir)
        tokenizer = self.settings.model.tokenizer_folder

        def make() -> Path | None:
            return prepare(self.settings.data, tokenizer, cache, split, self.say).folder if self.runtime.leads else None

        folder = self.runtime.from_leader(together(self.runtime, make))
        return together(self.runtime, lambda: Prepared.open(folder))

    def build_model(self) -> torch.nn.Module:
        model = build(self.settings.model, self.settings.train.seed)
        check_vocabulary(model.get_input_embeddings().num_embeddings, self.settings.model.tokenizer_folder)  # type: ignore[operator, union-attr, arg-type]
        return model

    def resume(self) -> Point | None:
        """Load the newest checkpoint of the run's line, say so, and note it in our claim. Returns it."""
        runtime, seed = self.runtime, self.settings.train.seed
        if runtime.leads:
            self.saver.folder.mkdir(exist_ok=True)
            remove_leftovers(self.saver.folder, runtime.epoch)
        runtime.barrier()
        own = load_newest(runtime, self.engine.shards, self.check_same_run)
        resumed = own or self.forked()
        point = own.point if own else None
        if resumed:
            self.progress = Progress(resumed.point.step, **resumed.manifest.state)
            for broken in resumed.passed_over:
                self.say(f"passed over a checkpoint that does not verify: {broken}")
        if own:
            self.safe = replace(self.progress)
        if resumed and resumed.rng is not None:
            restore_rng(resumed.rng)
        else:
            derive_rng(seed, self.progress.step, runtime.rank)
        if own and (changes := differences(own.manifest.layout, self.layout_now())):
            what = ", ".join(f"{key} {was} -> {now}" for key, was, now in changes)
            self.say(f"another layout ({what}): same weights, moments and batches, not bit-identical from here on")
        if runtime.leads:
            claims.note_resume(runtime.run_dir, runtime.epoch, point or Point(0, 0))
        source = folder_name(point) if point else self.settings.fork if resumed else None
        self.events.write("resume", step=self.progress.step, **{"from": source}, world_size=runtime.world_size)
        how = f"resumed from {source}" if source else "starts"
        self.say(f"{how} at step {self.progress.step} of {self.total}; {self.layout}")
        return point

    def forked(self) -> Resumed | None:
        """Another run's checkpoint that this one starts from, as long as it has none of its own."""
        if self.settings.fork is None:
            return None
        resumed = load_fork(self.runtime, Path(self.settings.fork), self.engine.shards)
        for key, was, now in differences(resumed.manifest.config, self.exact):
            self.say(f"other than in the run that this one starts from: {key} {was} -> {now}")
        if resumed.manifest.data != self.data.fingerprint:
            self.say(
                f"other data than in the run that this one starts from: batches go on from step {resumed.point.step}"
            )
        return resumed

    def exact_now(self) -> dict[str, Any]:
        """What makes the run what it is. Where the model's folder lies may change, what it computes may not."""
        exact = config.exact_part(self.settings)
        if self.settings.model.path is not None:
            exact["model"]["config"] = folder_config(self.settings.model.path)
        return dict(json.loads(json.dumps(exact)))

    def layout_now(self) -> dict[str, Any]:
        """What decides the order of sums and the random numbers, besides the exact config."""
        engine = to_plain(self.settings.engine)["kind"]
        return {
            "world_size": self.runtime.world_size,
            "engine": engine,
            "micro_batch_size": self.layout.micro_batch_size,
        }

    def check_same_run(self, manifest: Manifest) -> None:
        """An exact field may not differ from what the checkpoint was trained with. Raises ConfigError."""
        for key, was, value in differences(manifest.config, self.exact):
            raise ConfigError(
                f"{key} was {was} and is {value} now: this would be another run: undo it, or start a new run"
            )
        if manifest.data != self.data.fingerprint:
            was, now = manifest.data, self.data.fingerprint
            raise ConfigError(f"the data has changed since {was} (now {now}): restore it, or start a new run")

    # --- the loop ---

    def train(self) -> int:
        progress = self.progress
        board = Board(
            self.runtime.run_dir / "tensorboard", progress.step + 1, self.runtime.leads and self.settings.tensorboard
        )
        with board:
            batch = self.batch()
            ballot = self.stop.cast(batch)
            while True:
                # 1. An evaluation that is due. It is broken off by a stop, and then made after the resume.
                if self.evaluation_due() and (broken_off := self.evaluate(board)):
                    return self.leave(broken_off)
                # 2. A save that is due. It comes after the evaluation, and so no resume from it makes that again.
                if self.save_due():
                    self.save()
                if progress.step == self.total:
                    self.save_if_new()
                    return exits.DONE
                # 3. What all ranks agreed on while the step before ran: go on, the batch's tokens, its samples.
                agreement = ballot.read()
                if agreement.reason is not None:
                    return self.leave(agreement)
                # 4. The next vote is cast with its batch in hand, and travels while this step computes.
                following = self.batch(1)
                ballot = self.stop.cast(following)
                # 5. The step.
                self.step(batch, agreement, board)
                batch = following

    def batch(self, ahead: int = 0) -> RankBatch | None:
        step = self.progress.step + ahead
        return self.batches.get(step) if step < self.total else None

    def step(self, batch: RankBatch | None, agreement: Agreement, board: Board) -> None:
        """Forward, backward and optimizer step of one global batch, and its line in the events."""
        assert batch is not None  # the loop ends before a step without a batch
        began = time.monotonic()
        progress = self.progress
        lr = learning_rate(progress.step, self.total, self.settings.optim)
        last = len(batch.micro_batches) - 1
        total = sum(
            self.engine.backward(to_device(micro, self.runtime), agreement.valid_tokens, last=index == last).double()
            for index, micro in enumerate(batch.micro_batches)
        )
        norm = float(self.engine.step(lr))
        loss = self.runtime.sum(float(total)) / max(1, agreement.valid_tokens)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"step {progress.step + 1}: loss {loss}, gradient norm {norm}: lower optim.lr, or look at the data"
            )
        progress.step += 1
        progress.tokens_seen += agreement.valid_tokens
        seconds = time.monotonic() - began
        self.lead.saw_step(seconds)
        rate = self.settings.train.global_batch_size * self.settings.data.seq_len / seconds
        values = {"loss": loss, "lr": lr, "grad_norm": norm}
        self.events.write(
            "step", step=progress.step, **values, tokens=agreement.valid_tokens, hash=agreement.hash, seconds=seconds
        )
        board.add(progress.step, **values, tokens_per_second=rate)
        done = f"step {progress.step:>6} of {self.total}"
        self.say(f"{done}  loss {loss:.4f}  lr {lr:.2e}  norm {norm:.2f}  {rate:,.0f} tokens/s")

    def evaluation_due(self) -> bool:
        every, step = self.settings.evaluation.every, self.progress.step
        return bool(every) and self.progress.evaluated != step > 0 and (step % every == 0 or step == self.total)

    def evaluate(self, board: Board) -> Agreement | None:
        """The held-out loss; or the agreement to stop that broke it off."""
        assert self.held_out is not None
        result = evaluate(
            self.engine, self.held_out, self.layout, self.settings.evaluation.batches, self.runtime, self.stop
        )
        if isinstance(result, Agreement):
            return result
        self.progress.evaluated = self.progress.step
        self.events.write("evaluation", step=self.progress.step, loss=result)
        board.add(self.progress.step, evaluation_loss=result)
        self.say(f"held-out loss {result:.4f} after step {self.progress.step}")
        return None

    # --- saving and leaving ---

    def save_due(self) -> bool:
        step = self.progress.step
        return 0 < step < self.total and step % self.settings.checkpoint.every == 0 and self.safe != self.progress

    def save(self) -> bool:
        """A checkpoint of the steps that are done. A failure leaves the last one standing, and is said."""
        try:
            saved = self.saver.save(self.progress.step, self.content())
        except SaveFailed as error:
            self.events.write("save_failed", step=self.progress.step, error=str(error))
            self.say(f"this checkpoint could not be saved, the last one stands: {error}")
            return False
        self.committed, self.safe = saved.point, replace(self.progress)
        self.lead.saw_save(saved.seconds)
        self.events.write("save", step=self.progress.step, seconds=saved.seconds, bytes=saved.size)
        try:
            self.saver.clean_up()
        except OSError as error:
            self.say(f"old checkpoints could not be removed: {error}")
        return True

    def content(self) -> Content:
        state = {"tokens_seen": self.progress.tokens_seen, "evaluated": self.progress.evaluated}
        return Content(layout=self.layout_now(), config=self.exact, data=self.data.fingerprint, state=state)

    def save_if_new(self) -> None:
        """Raises SaveFailed when the state of now is not safe."""
        if self.safe != self.progress and not self.save():
            raise SaveFailed(f"step {self.progress.step} is not saved")

    def leave(self, agreement: Agreement) -> int:
        """All ranks are here, at the same step."""
        self.events.write("stop", step=self.progress.step, reason=self.stop.text(agreement))
        self.say(f"all ranks stop after step {self.progress.step}: {self.stop.text(agreement)}")
        if self.progress.step:
            self.save_if_new()
        return agreement.code

    def finish(self) -> None:
        """By rank 0: the last step is saved; export it, and only then say DONE."""
        assert self.committed is not None
        run_dir, checkpoint = self.runtime.run_dir, self.saver.folder / folder_name(self.committed)
        done: dict[str, Any] = {"step": self.progress.step, "tokens_seen": self.progress.tokens_seen}
        if self.settings.export:
            done["sha256"] = export(self.settings, checkpoint, run_dir / "export")
        self.events.write("done", step=self.progress.step)
        write_atomic(run_dir / "DONE", json.dumps({**done, "time": time.time()}) + "\n")
        self.say(f"done: {self.progress.step} steps")

    def say(self, text: str) -> None:
        if self.runtime.leads:
            print(text, flush=True)


def together(runtime: Runtime, work: Callable[[], T]) -> T:
    """Do `work` on every rank; one rank's ConfigError is raised on all, so that none waits for it."""
    value, error = None, None
    try:
        value = work()
    except ConfigError as mistake:
        error = str(mistake)
    errors = [text for text in runtime.gather(error) if text]
    if errors:
        raise ConfigError(errors[0])
    return value  # type: ignore[return-value]
