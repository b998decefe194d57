"""One attempt: start the ranks, wait, pass the word to stop, and say how it ended."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from durable import write_atomic
from slurm import progress
from slurm.causes.cause import (
    FAILURES,
    RankExit,
    attempt_cause,
    cut_short,
    failed_node,
    foreign_cause,
    refused_for_the_end,
    scheduler_cause,
)
from slurm.causes.ends import events, failure, read_ends, trained, unfit
from slurm.causes.failures import ended_from_outside, first_failure, job_log
from slurm.causes.logs import srun_words
from slurm.commands import JobFacts
from slurm.config import JobConfig
from slurm.errors import CommandFailed
from slurm.node import hostfile, packed
from slurm.node.shim import WAITED
from slurm.rundir import Claim, RunDir
from slurm.scheduler import Scheduler
from slurm.step import EXITS, Step, enter

STEP_OUTLIVES = 30.0  # seconds; torchrun's agent may still end
FORGET_SECONDS = 10.0  # for a short step over all nodes
UNPACK_SECONDS = 1800.0


def trainer_argv(run: RunDir, python: str) -> tuple[str, ...]:
    return (python, "-P", "-m", "trainer", str(run.path / "config.yaml"))


@dataclass
class Attempt:
    run: RunDir
    job: JobConfig
    scheduler: Scheduler
    claim: Claim
    cancel_run: Callable[[str], None]
    """Called at once when Slurm says that the user cancelled the job."""
    queue_successor: Callable[[], None]
    """Called at every look at Slurm: one that was refused at the start is tried again."""
    budget_ends: float | None = None
    """Unix seconds at which the user's GPU-hours are used up."""

    def __post_init__(self) -> None:
        self.deadline = self.scheduler.deadline(self.scheduler.facts())
        self.words: list[str] = []
        self.left: float | None = None
        """When all ranks had left, as far as we have looked."""
        self.stuck = False
        self.first_step = self.run.committed_step()
        log = job_log(self.run, self.scheduler.job_id)
        self.log_start = log.stat().st_size if log.exists() else 0

    # --- its life ---

    def execute(self) -> dict[str, Any]:
        """Run the ranks to their end. Returns the attempt's record. The caller has blocked the WAITED signals."""
        self.step = step = self.prepare()
        # Else they would start from what somebody else may have put there.
        there = not self.job.archive or place(Path(self.job.archive), step, self.scheduler)
        argv = self.scheduler.step_argv(step) if there else ["false"]
        # A session of its own: Ctrl-C in a terminal is for the supervisor, which passes it on as the user's stop.
        process = subprocess.Popen(argv, start_new_session=True, stdin=subprocess.DEVNULL, preexec_fn=_unblock)
        next_poll = self.next_poll()
        while process.poll() is None:
            info = signal.sigtimedwait(WAITED, max(0.0, min(1.0, next_poll - time.monotonic())))
            try:
                if info is not None and info.si_signo != signal.SIGCHLD:
                    self.on_signal(signal.Signals(info.si_signo))
                if look := time.monotonic() >= next_poll:
                    next_poll = self.next_poll()
                    self.poll()
                if (look or self.words) and self.outlived(step):
                    process.kill()
            except OSError as error:  # a full disk must not end healthy ranks
                print(f"outlast: {error}", flush=True)
        return self.record(step, self.scheduler.facts())

    def forget(self) -> None:
        """What ranks that failed keep in their nodes' memory goes: nobody comes back for it. The others' is gone."""
        python = sys.executable if self.job.archive else self.step.python  # the archive's may not be there
        _errand(replace(self.step, forget=True, python=python), self.scheduler, FORGET_SECONDS)

    def prepare(self) -> Step:
        logs = self.run.attempt_dir(self.claim.epoch)
        logs.mkdir(parents=True, exist_ok=True)
        hostfile.write(logs / "hostfile", self.scheduler.hosts(), self.job.gpus_per_node)
        self.write_deadline(self.deadline)
        foreign, python = self.job.command is not None, self.job.python
        environment = packed.place_of(Path(self.job.archive), self.job.node_local) if self.job.archive else ""
        if environment and not self.job.rank_python:
            python = f"{environment}/bin/python"
        if foreign:
            progress.remember(self.run, self.job.progress, self.claim.epoch)
        return Step(
            run_dir=str(self.run.path),
            epoch=self.claim.epoch,
            launcher=self.job.launcher,
            nodes=self.job.nodes,
            ranks_per_node=self.job.gpus_per_node,
            argv=tuple(self.job.command) if self.job.command else trainer_argv(self.run, python),
            foreign=foreign,
            stop_signal=self.job.stop_signal,
            deadline=self.deadline,
            cut_short=not foreign and cut_short(self.run.attempts()),
            python=python,
            started=time.time(),
            prefix=enter(self.job.rank_command, self.run.path, self.job.binds),
            network={name: str(value) for name, value in self.job.network.environment.items()},
            host_suffix=self.job.network.host_suffix,
            node_local=self.job.node_local,
            environment=str(environment),
        )

    def write_deadline(self, deadline: float | None) -> None:
        """The ranks prefer it to what they were started with: an earlier job's must not stay."""
        if deadline is not None:
            write_atomic(self.run.deadline_file, f"{deadline:.0f}\n")
        else:
            self.run.deadline_file.unlink(missing_ok=True)

    # --- while it runs ---

    def on_signal(self, signum: signal.Signals) -> None:
        if signum == signal.SIGINT:
            write_atomic(self.run.stop_file, "Ctrl-C\n")
            return
        facts = self.scheduler.facts()
        cause = scheduler_cause(facts, self.scheduler.restart_count)
        silent = facts is None and self.scheduler.job_id is not None
        if cause == "cancel":
            self.cancel_run("scancel")
        elif not (silent and signum == signal.SIGTERM):  # Slurm ends the job then, and the ranks hear it themselves
            self.tell_ranks("deadline" if cause == "timeout" else cause or f"signal {signum.name}", facts)
            self.queue_successor()  # ranks that do not leave in time may take us along

    def next_poll(self) -> float:
        """On the monotonic clock. A foreign command hears of its deadline --lead before it, not up to a poll later."""
        lead = self.until_lead()
        return time.monotonic() + min(self.job.poll_seconds, lead if lead > 0 else math.inf)

    def until_lead(self) -> float:
        """Seconds until a foreign command is to hear of its deadline; of the trainer, which knows it: infinite."""
        if self.job.command is None or self.deadline is None:
            return math.inf
        return self.deadline - self.job.lead_seconds - time.time()

    def poll(self) -> None:
        self.queue_successor()
        facts = self.scheduler.facts()
        deadline = self.scheduler.deadline(facts)
        if deadline is not None and deadline != self.deadline:
            self.write_deadline(deadline)
            self.deadline = deadline
        cause = scheduler_cause(facts, self.scheduler.restart_count)
        if self.budget_ends is not None and time.time() + self.job.poll_seconds > self.budget_ends:
            self.tell_ranks("budget")
        if cause == "preemption":  # its grace is a new deadline
            self.tell_ranks(cause, facts)
        elif self.until_lead() <= 0:
            self.tell_ranks("deadline")

    def outlived(self, step: Step) -> bool:
        """Whether the step goes on without its ranks. srun waits for ever for a slurmstepd that was killed (seen)."""
        if (
            self.left is None
            and len(list(self.run.attempt_dir(self.claim.epoch).glob(EXITS))) == step.layout.world_size
        ):
            self.left = time.monotonic()
        # When Slurm ends the job for a lost node, the end must be written before it ends us as well.
        patience = 1.0 if "node_failure" in self.words else STEP_OUTLIVES
        self.stuck = self.left is not None and time.monotonic() > self.left + patience
        return self.stuck

    def tell_ranks(self, why: str, facts: JobFacts | None = None) -> None:
        """Our word to this attempt's ranks: save and leave. In a preemption's grace they hear how long it lasts. A
        foreign command may go on after it, and gets another one for another reason."""
        if not self.words or (self.job.command is not None and why not in self.words):
            grace = why == "preemption" and facts is not None and facts.state == "RUNNING"
            until = f"until {facts.end_time:.0f}\n" if grace and facts and facts.end_time else ""
            write_atomic(self.run.stop_word(self.claim.epoch), f"{why}\n{until}")
            self.words.append(why)  # not before: a word that could not be written is tried again

    # --- how it ended ---

    def record(self, step: Step, facts: JobFacts | None) -> dict[str, Any]:
        end, exits = time.time(), read_ends(self.run, self.claim.epoch, step.layout.world_size)
        hosts = self.scheduler.hosts()
        reason = self.stop_reason()
        why = foreign_cause if step.foreign else attempt_cause
        cause = why(exits, scheduler_cause(facts, self.scheduler.restart_count), reason)
        if cause == "crash" and all(end.unknown for end in exits) and (ended := refused_for_the_end(self.srun_words())):
            cause, reason = ended, self.srun_words()
        if self.stuck and cause in (*FAILURES, "signal"):
            # Its dead step keeps the GPUs: Slurm would let the next one of this job wait as long.
            cause, reason = "node_failure", "a node's slurmstepd is gone: srun did not end with its ranks"
        failed_on = failed_node(cause, exits, first_failure(self.run, self.claim.epoch), hosts)
        bad = unfit(self.run, self.claim.epoch, self.scheduler.job_id, self.log_start) if cause == "crash" else None
        if bad is not None:
            cause, reason, failed_on = "node_failure", f"{bad[0]} is unfit: {bad[1]}", bad[0]
        return {
            "attempt": self.claim.epoch,
            "job_id": self.scheduler.job_id,
            "restart_count": self.scheduler.restart_count,
            "start": self.claim.time,
            "end": end,
            "cause": cause,
            "reason": self.detail(cause, exits, reason),
            "ranks": step.layout.world_size,
            "starter": self.claim.starter,
            **self.steps(end),
            "exits": dict(Counter(str(e).split(": ")[1] for e in exits)),
            "hosts": hosts,
            "failed_on": failed_on,
            **({"unfit": True} if bad else {}),
        }

    def steps(self, end: float) -> dict[str, Any]:
        if self.job.command is not None:
            return progress.since(self.run, self.job.progress, self.claim.epoch)
        return trained(self.run, self.claim.epoch, self.first_step, self.claim.time, end)

    def stop_reason(self) -> str | None:
        """Why the ranks agreed to stop, in the trainer's words, else ours to them."""
        if told := events(self.run, self.claim.epoch, "stop"):
            return str(told[-1].get("reason"))
        if self.job.command is not None and self.run.stop_file.exists():
            return "stop file"
        return self.words[-1] if self.words else None

    def detail(self, cause: str, exits: list[RankExit], reason: str | None) -> str:
        """One line for people: the first failure with its log, or the reason of the stop."""
        if cause == "crash" and all(end.unknown for end in exits):
            words = ended_from_outside(self.run, self.claim.epoch) or self.srun_words()
            return f"no rank left an exit record{f': {words}' * bool(words)}"
        if cause in ("crash", "config", "hang", "oom"):
            return failure(self.run, self.claim.epoch, cause, exits)
        return reason or ""

    def srun_words(self) -> str:
        return srun_words(job_log(self.run, self.scheduler.job_id), self.log_start)


def place(archive: Path, step: Step, scheduler: Scheduler) -> bool:
    """The packed environment unpacked on every node. Where that fails no rank starts, and the job's log says why."""
    began, there = time.monotonic(), Path(f"{step.environment}.tar")
    errand = replace(step, unpack=str(there), launcher="spawn", python=sys.executable)
    if _errand(errand, scheduler, UNPACK_SECONDS, quiet=True):  # from an attempt before, or a job
        return True
    try:
        sent = scheduler.broadcast(archive, there)
    except CommandFailed as error:
        print(f"outlast: {error}", flush=True)
        return False
    sending = time.monotonic() - began
    if not _errand(replace(errand, unpack=str(sent)), scheduler, UNPACK_SECONDS):
        print(f"outlast: {archive} could not be unpacked on every node", flush=True)
        return False
    unpacking = time.monotonic() - began - sending
    print(f"outlast: {archive} is on every node: {sending:.1f} s to send, {unpacking:.1f} s to unpack", flush=True)
    return True


def _errand(step: Step, scheduler: Scheduler, seconds: float, quiet: bool = False) -> bool:
    """A step over all nodes without ranks. Returns whether it ended well on all of them."""
    argv, nothing = scheduler.step_argv(step), subprocess.DEVNULL
    said = nothing if quiet else None
    with suppress(OSError, subprocess.TimeoutExpired):
        ended = subprocess.run(argv, stdin=nothing, stderr=said, timeout=seconds, preexec_fn=_unblock)
        return ended.returncode == 0
    return False


def _unblock() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def describe(record: dict[str, Any]) -> str:
    """An attempt's end in one line."""
    steps = f"steps {record['first_step']} to {record['committed_step']}"
    reason = f": {record['reason']}" if record["reason"] else ""
    seconds = record["end"] - record["start"]
    return f"attempt {record['attempt']} ended after {seconds:.0f} s ({steps}) by {record['cause']}{reason}"
