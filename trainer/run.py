"""The run of one rank, from its config to its exit code. Reads downwards as it happens."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace as altered

from durable import write_atomic
from trainer import claims, config, exits, installed, report, self_test
from trainer.attempt import Attempt
from trainer.checkpoint import Point, folder_name
from trainer.checkpoint.lineage import checkpoints_in_line
from trainer.checkpoint.load import Resumed, load_fork, load_newest
from trainer.checkpoint.recover import finish_cut_save
from trainer.checkpoint.rng import derive_rng, restore_rng
from trainer.checkpoint.save import Content
from trainer.checkpoint.saves import Progress, Saves
from trainer.checkpoint.writers import Fenced, SaveFailed, Writers
from trainer.config import differences
from trainer.data.batches import Batches, RankBatch
from trainer.data.feed import Feed
from trainer.data.prepared import Pool, Prepared
from trainer.engines.engine import make_engine
from trainer.engines.shard import KINDS
from trainer.engines.stopwatch import Launched
from trainer.evaluation import HeldOut, finite
from trainer.export import export
from trainer.forgetting import Forgetting
from trainer.guard import Diverged
from trainer.host import keep_freed_memory, multiplies_bf16
from trainer.identity import check_same_run, exact_part, layout_part
from trainer.memory import note_out_of_memory
from trainer.model import compiled, four_bit, kernels, lora, new_tokens, recompute
from trainer.model.loss import logits_stand_whole
from trainer.model.model_config import check_vocabulary
from trainer.model.weights import build, fill, hollow
from trainer.plan import batch_layout
from trainer.records import events
from trainer.records.board import Board
from trainer.records.step_log import Step, StepLog
from trainer.records.throughput import Throughput
from trainer.runtime import start, versions
from trainer.schema import TrainConfig
from trainer.self_test import Unfit
from trainer.sources import Split
from trainer.stages import Course
from trainer.stop.stop import Ballot, Stopped
from trainer.stop.votes import Agreement


def run(config_path: Path) -> int:
    """One rank of one attempt. Returns its exit code. Raises ConfigError."""
    run_dir = Path(os.environ.get("OUTLAST_RUN_DIR") or config_path.parent).resolve()
    settings = config.read(config_path)
    if (run_dir / "DONE").exists():
        return exits.DONE
    if settings.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    runtime = start(run_dir, settings.watchdog.longest)
    attempt = Attempt(settings, runtime)
    training = Training(settings, attempt)
    with attempt.watchdog:
        try:
            training.set_up()
            code = training.train()
        except Stopped as stopped:
            code = training.leave(stopped.agreement)
        except Fenced as error:
            attempt.say(str(error))
            code = exits.FENCED
        except (Diverged, SaveFailed, Unfit) as error:
            print(f"outlast: {error}", file=sys.stderr)
            return exits.NO_PROGRESS if isinstance(error, Diverged) and error.again else exits.CRASHED
        except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError
            stands = (getattr(training, name, None) for name in ("layout", "engine"))
            note_out_of_memory(error, runtime, attempt.watchdog.phase, settings, *stands)
            raise
        finally:
            training.close()
        # The ranks leave together, and with one code: the commit is behind them.
        attempt.watchdog.enter("leave")
        code = runtime.max(code)
        runtime.barrier()
        if code == exits.DONE and runtime.leads:  # the others are free: an export may take longer than they would wait
            code = training.finish()
    return code


class Training:
    def __init__(self, settings: TrainConfig, attempt: Attempt) -> None:
        self.settings, self.attempt, self.runtime = settings, attempt, attempt.runtime
        self.stop, self.watchdog, self.say = attempt.stop, attempt.watchdog, attempt.say
        self.progress = Progress()
        self.forgetting: Forgetting | None = None

    # --- before the first step ---

    def set_up(self) -> None:
        """Raises Stopped when a stop was asked for before there was anything to save."""
        runtime, settings, together = self.runtime, self.settings, self.attempt.together
        # 1. Data: one rank prepares what is not there yet, all open it.
        self.watchdog.enter("preparation")
        self.exact = together(lambda: exact_part(settings))
        self.layout = batch_layout(settings.train, runtime.world_size)
        self.tokenizer = new_tokens.tokenizer_folder(settings.model, runtime.run_dir)
        if settings.model.new_tokens:
            together(lambda: new_tokens.write(settings.model, Path(self.tokenizer)) if runtime.leads else None)
        self.data = Pool(self.prepared("train"))
        held_out = self.prepared("evaluation") if settings.evaluation.every else {}
        self.held_out = HeldOut(settings.evaluation, held_out)
        self.course = Course(settings, self.data.sizes)
        self.total = self.course.steps
        self.batches = Batches(self.data, self.layout, settings.train.seed, runtime.rank, self.course.ids)
        # 2. The model, the same on every rank, and the engine that spreads it.
        self.watchdog.enter("model")
        if settings.train.compile == "auto":
            settings = self.settings = self.compiled_where_it_pays()
        model = together(self.build_model)
        size = 4 * len(KINDS) * sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.attempt.lead.expect_checkpoint(size, runtime.world_size, runtime.nodes)
        self.hollow = any(parameter.is_meta for parameter in model.parameters())
        self.throughput = Throughput(settings, model, runtime)
        self.engine = make_engine(settings, self.layout, model, runtime)
        self.engine.module.train()
        if logits_stand_whole(self.engine.module):
            self.say("this model treats its logits in a way of its own: they stand whole in memory")
        if runtime.device.type == "cpu" and settings.train.bf16_passes and not multiplies_bf16():
            self.say("this CPU has no instructions for bf16: train.precision=fp32 is 2 to 3 times as fast here")
        # 3. What happened before, and where it goes on.
        self.watchdog.enter("resume")
        self.resume(Writers(runtime))

    def prepared(self, split: Split) -> dict[str, Prepared]:
        """The sources of a split, by name."""
        data, prepared = self.settings.data, self.attempt.prepared
        named = data.keys(split).items()
        return {name: prepared(self.settings, f"data.{key}", data.sources[key]) for name, key in named}

    def compiled_where_it_pays(self) -> TrainConfig:
        """Collective."""
        runtime, settings = self.runtime, self.settings
        about = (settings, self.layout, runtime.device, runtime.run_dir, self.say)
        chosen = self.attempt.together(lambda: compiled.decided(*about) if runtime.leads else None)
        return altered(settings, train=altered(settings.train, compile=runtime.from_leader(chosen)))

    def build_model(self) -> torch.nn.Module:
        train, adapters = self.settings.train, self.settings.lora
        dtype = torch.bfloat16 if train.bf16_weights else torch.float32
        if train.kernels:
            kernels.check(self.settings.model, self.runtime.device)
        if adapters and adapters.quantize:
            model = four_bit.build(self.settings.model, train.seed, self.runtime.device)
        else:
            model = (build if adapters else hollow)(self.settings.model, train.seed, dtype)
        check_vocabulary(model.get_input_embeddings().num_embeddings, self.tokenizer)  # type: ignore[operator]
        if train.kernels:
            kernels.apply(model)
        recompute.enable(model, train)
        if adapters:
            lora.inject(model, lora.with_tokens(adapters, self.settings.model), train.seed, dtype)
        if train.compile:
            compiled.compile_layers(model, self.runtime.device, self.runtime.run_dir)
        return model

    def resume(self, writers: Writers) -> None:
        """Load the newest checkpoint of the run's line, say so, and note it in our claim."""
        runtime, seed, data = self.runtime, self.settings.train.seed, self.data.fingerprint
        if said := finish_cut_save(runtime, writers):
            self.say(said)
        check, near = lambda manifest: check_same_run(manifest, self.exact, data), writers.memory.path_of
        own = load_newest(runtime, self.engine.shards, check, near)
        resumed = own or self.forked()
        if self.hollow and not resumed:
            self.attempt.together(lambda: fill(self.engine.shards(), self.settings.model, seed))
        if self.hollow or resumed:
            self.engine.refresh()
        if self.settings.forgetting:
            self.hold(own, resumed)
        if resumed:
            manifest = resumed.manifest
            self.progress = Progress(resumed.point.step, **manifest.state, first_losses=manifest.first_losses)
            if not own and self.held_out.wants_first(self.progress.first_losses):
                self.progress.evaluated = -1  # by the other run, without the sets that are limited here
            for broken in resumed.passed_over:
                self.say(f"passed over a checkpoint that does not verify: {broken}")
            step, compiles = self.progress.step, self.settings.train.compile  # a forward pass alone is compiled anew
            batch = self.batches.get(step).micro_batches[0] if step < self.total and not compiles else None
            self_test.check(runtime, self.engine, resumed.sums, batch)
        writers.memory.forget_earlier()  # all ranks have read
        layout = layout_part(self.settings, self.layout)
        content = Content(layout, self.exact, data, state={})
        self.saves = Saves(self.settings.checkpoint, self.attempt, self.engine, writers, content)
        if own:
            self.saves.committed, self.saves.safe = own.point, replace(self.progress)
        if resumed and resumed.rng is not None:
            restore_rng(resumed.rng)
        else:
            derive_rng(seed, self.progress.step, runtime.rank)
        if own and (changes := differences(own.manifest.layout, layout)):
            what = ", ".join(f"{key} {was} -> {now}" for key, was, now in changes)
            self.say(f"another layout ({what}): same weights, moments and batches, not bit-identical from here on")
        if runtime.leads:
            claims.note_resume(runtime.run_dir, runtime.epoch, own.point if own else Point(0, 0), self.total)
        self.saves.start(self.progress.step)
        source = folder_name(own.point) if own else self.settings.fork
        how = f"resumed from {source}" if source else "starts"
        stage = self.course.at(self.progress.step).name
        text = f"{how} at step {self.progress.step} of {self.total}{f', stage {stage}' if stage else ''}; {self.layout}"
        ranks = {"world_size": runtime.world_size, "local_world_size": runtime.local_world_size}
        about = {"from": source, "of": self.total, **ranks, "device": runtime.device_name, "versions": versions()}
        self.attempt.tell("resume", self.progress.step, text, **about)
        if runtime.leads and (changed := installed.note(runtime.run_dir, runtime.epoch)):
            self.attempt.tell("software", self.progress.step, installed.told(changed), changes=changed)

    def hold(self, own: Resumed | None, resumed: Resumed | None) -> None:
        """Near the weights that the run starts from, or that it once started from."""
        self.forgetting = Forgetting(self.settings, self.attempt, self.engine, self.exact["model"])
        if own:
            self.forgetting.resume()
        else:
            self.forgetting.begin(forked=resumed is not None)

    def forked(self) -> Resumed | None:
        """Another run's checkpoint that this one starts from, as long as it has none of its own."""
        if self.settings.fork is None:
            return None
        path = Path(self.settings.fork)
        resumed = load_fork(self.runtime, path, self.engine.shards)
        if (theirs := path.stat().st_uid) != os.geteuid():
            self.say(f"{path} belongs to another user ({theirs}): numbers are read from it, and nothing in it can run")
        for key, was, now in differences(resumed.manifest.config, self.exact):
            self.say(f"other than in the run that this one starts from: {key} {was} -> {now}")
        if resumed.manifest.data != self.data.fingerprint:
            self.say(f"other data than in the run that this one starts from: batches from step {resumed.point.step} on")
        return resumed

    # --- the loop ---

    def train(self) -> int:
        progress, first = self.progress, self.progress.step
        wanted = self.runtime.leads and self.settings.tensorboard
        self.board = Board(self.runtime.run_dir / "tensorboard", first + 1, wanted)
        told = (self.runtime, self.attempt.tell, self.attempt.lead, self.throughput)
        self.log = StepLog(*told, self.board, self.batches, self.total)
        if self.runtime.device.type == "cpu":
            keep_freed_memory()  # not before: while a model is loaded, no rank holds more than its share
        with self.board, Feed(self.batches.get(step) for step in range(first, self.total)) as self.feed:
            ballot = self.cast()
            self.attempt.tell("begin", first)
            while True:
                # 1. What all ranks agreed on while the last step ran: go on, the next batch's tokens, its samples.
                agreement = self.hear(ballot)
                asked = agreement.due
                at_end = progress.step == self.total  # a stop that comes now has nothing left to stop
                if at_end or agreement.reason is None and (self.evaluation_due() or self.saves.due(progress, asked)):
                    self.settle()  # before anything builds on the last step
                    # 2. An evaluation that is due. It is broken off by a stop, and then made after the resume.
                    if self.evaluation_due() and (broken_off := self.evaluate()):
                        return self.leave(broken_off)
                    # 3. A save that is due, after the evaluation: no resume from it makes that again.
                    if at_end:
                        return self.end()
                    if self.saves.due(progress, asked) and not self.log.guard.skipped:  # three in a row go back
                        self.board.flush()  # no resume leaves a gap in the curves
                        self.saves.begin(progress)
                    # A stop that came meanwhile is heard before another step.
                    agreement = self.hear(self.cast())
                if agreement.waiting:
                    self.watchdog.enter("data")
                    self.settle()
                    agreement = self.stop.agree(self.feed)
                if agreement.reason is not None:
                    self.settle()
                    return self.leave(agreement)
                # 4. The next vote is cast with its batch in hand, and travels while this step computes.
                self.watchdog.enter("step" if progress.step > first else "first step")
                batch = self.feed.take()
                ballot = self.cast(due=self.saves.rhythm.due(progress.step + 1))
                # 5. The step.
                self.step(batch, agreement)

    def cast(self, last: bool = False, due: bool = False) -> Ballot:
        """The vote for the step after the next, with our share of a step that the device has done; at `last` of the
        last one too, which is waited for. `due`: a save after the next step is."""
        return self.stop.cast(self.feed, self.log.share(last), self.saves.saver.ended, due)

    def hear(self, ballot: Ballot) -> Agreement:
        agreement = ballot.read()
        if (step := self.log.heard(agreement.loss)) is not None:
            self.attempt.saw_step(step, ballot.seconds)
        if agreement.saved:
            self.saves.end()
        return agreement

    def settle(self) -> None:
        while not self.log.settled:
            self.hear(self.cast(last=True))

    def step(self, batch: RankBatch | None, agreement: Agreement) -> None:
        """Forward, backward and optimizer step of one global batch, launched: nothing here waits for the device."""
        assert batch is not None  # the loop ends before a step without a batch
        progress, tokens, device = self.progress, agreement.valid_tokens, self.runtime.device
        if (stage := self.course.begins(progress.step)) is not None:
            text = f"stage {stage.name}: steps {stage.first + 1} to {stage.end}"
            self.attempt.tell("stage", progress.step, text, name=stage.name, seen=self.course.tokens(progress.step))
        lr = self.course.learning_rate(progress.step)
        last = len(batch.micro_batches) - 1
        self.engine.stopwatch.lap()  # an evaluation's forward passes are not this step's
        launched = Launched(device)
        losses = [
            self.engine.backward(micro.to(device), tokens, last=index == last).double()
            for index, micro in enumerate(batch.micro_batches)
        ]
        launched.end(torch.stack(losses).sum(), self.engine.step(lr, progress.step + 1))
        progress.step += 1
        progress.tokens_seen += tokens
        about = (progress.step, lr, tokens, agreement.hash, batch.pairs, self.feed.read_wait())
        self.log.launched(Step(*about, launched, self.engine.stopwatch.lap()))

    def evaluation_due(self) -> bool:
        progress = self.progress
        if progress.evaluated == progress.step:
            return False
        first = progress.evaluated < 0 and self.held_out.wants_first(progress.first_losses)
        return first or self.held_out.due(progress.step, self.total)

    def evaluate(self) -> Agreement | None:
        """The held-out losses; or the agreement to stop that broke them off."""
        self.watchdog.enter("evaluation")
        progress = self.progress
        result = self.held_out.evaluate(self.engine, self.layout, self.runtime, self.stop)
        if isinstance(result, Agreement):
            return result
        progress.evaluated = progress.step
        progress.first_losses = self.held_out.first(result, progress.first_losses)
        self.saves.evaluated(result[self.held_out.best])
        self.held_out.tell(progress.step, result, progress.first_losses, self.attempt.tell, self.board)
        if self.forgetting:
            penalty = self.forgetting.penalty()
            text = f"held near the start: penalty {penalty:.4g}"
            self.attempt.tell("penalty", progress.step, text, penalty=finite(penalty))
            self.board.add(progress.step, penalty=penalty)
        return None

    # --- leaving ---

    def leave(self, agreement: Agreement) -> int:
        """All ranks are here, at the same step."""
        reason, phase = self.stop.text(agreement), self.watchdog.phase
        step = self.progress.step or max((point.step for point in checkpoints_in_line(self.runtime.run_dir)), default=0)
        self.attempt.tell("stop", step, f"all ranks stop after step {step}: {reason}", reason=reason, phase=phase)
        if self.progress.step:
            self.saves.at_stop(self.progress, agreement.may_save)
        return agreement.code

    def end(self) -> int:
        self.saves.at_stop(self.progress, may_begin=True)
        if self.saves.safe != self.progress:  # it could not end before Slurm's kill: the next attempt makes it
            return exits.CONTINUE
        self.saves.clean_up()
        return exits.DONE

    def close(self) -> None:
        if (engine := getattr(self, "engine", None)) is not None:
            engine.close()

    def finish(self) -> int:
        """By rank 0: the last step is saved; export it, and only then say DONE. A stop that comes now waits for it."""
        assert self.saves.committed is not None
        self.watchdog.enter("export")
        if claims.fenced(self.runtime.run_dir, self.runtime.epoch):
            return exits.FENCED
        self.saves.retention.finish()
        run_dir, checkpoint = self.runtime.run_dir, self.saves.saver.folder / folder_name(self.saves.committed)
        done: dict[str, Any] = {"step": self.progress.step, "tokens_seen": self.progress.tokens_seen}
        if self.settings.export:
            done["sha256"] = export(self.settings, checkpoint, run_dir / "export", self.say)
        seen = self.course.tokens(self.progress.step)
        self.attempt.tell(
            "done", self.progress.step, self.course.told(self.progress.step), **({"seen": seen} if seen else {})
        )
        if self.settings.report:
            report.at_the_end(run_dir, self.say)
        done["last_event"] = events.last_hash(run_dir)
        write_atomic(run_dir / "DONE", json.dumps({**done, "time": time.time()}) + "\n")
        self.say(f"done: {self.progress.step} steps")
        return exits.DONE
