"""One attempt: start the ranks, wait, pass the word to stop, and say how it ended."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from durable import write_atomic
from slurm import hostfile, progress
from slurm.cause import (
    FAILURES,
    RankExit,
    attempt_cause,
    cut_short,
    failed_node,
    foreign_cause,
    refused_for_the_end,
    scheduler_cause,
)
from slurm.commands import JobFacts
from slurm.config import JobConfig
from slurm.ends import events, failure, read_ends
from slurm.logs import first_failure, job_log, srun_words
from slurm.rundir import Claim, RunDir
from slurm.scheduler import Scheduler
from slurm.shim import WAITED
from slurm.step import EXITS, Step, enter

STEP_OUTLIVES = 30.0  # seconds; torchrun's agent may still end
FORGET_SECONDS = 10.0  # for a short step over all nodes


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
        # A session of its own: Ctrl-C in a terminal is for the supervisor, which passes it on as the user's stop.
        process = subprocess.Popen(
            self.scheduler.step_argv(step), start_new_session=True, stdin=subprocess.DEVNULL, preexec_fn=_unblock
        )
        next_poll = time.monotonic() + self.job.poll_seconds
        while process.poll() is None:
            info = signal.sigtimedwait(WAITED, max(0.0, min(1.0, next_poll - time.monotonic())))
            try:
                if info is not None and info.si_signo != signal.SIGCHLD:
                    self.on_signal(signal.Signals(info.si_signo))
                if look := time.monotonic() >= next_poll:
                    next_poll = time.monotonic() + self.job.poll_seconds
                    self.poll()
                if (look or self.words) and self.outlived(step):
                    process.kill()
            except OSError as error:  # a full disk must not end healthy ranks
                print(f"outlast: {error}", flush=True)
        return self.record(step, self.scheduler.facts())

    def forget(self) -> None:
        """What ranks that failed keep in their nodes' memory goes: nobody comes back for it. The others' is gone."""
        argv = self.scheduler.step_argv(replace(self.step, forget=True))
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=FORGET_SECONDS, preexec_fn=_unblock)

    def prepare(self) -> Step:
        logs = self.run.attempt_dir(self.claim.epoch)
        logs.mkdir(parents=True, exist_ok=True)
        hostfile.write(logs / "hostfile", self.scheduler.hosts(), self.job.gpus_per_node)
        self.write_deadline()
        foreign = self.job.command is not None
        if foreign:
            progress.remember(self.run, self.job.progress, self.claim.epoch)
        return Step(
            run_dir=str(self.run.path),
            epoch=self.claim.epoch,
            launcher=self.job.launcher,
            nodes=self.job.nodes,
            ranks_per_node=self.job.gpus_per_node,
            argv=tuple(self.job.command) if self.job.command else trainer_argv(self.run, self.job.python),
            foreign=foreign,
            stop_signal=self.job.stop_signal,
            deadline=self.deadline,
            cut_short=not foreign and cut_short(self.run.attempts()),
            python=self.job.python,
            prefix=enter(self.job.rank_command, self.run.path, self.job.binds),
        )

    def write_deadline(self) -> None:
        """The ranks prefer it to what they were started with: an earlier job's must not stay."""
        if self.deadline is not None:
            write_atomic(self.run.deadline_file, f"{self.deadline:.0f}\n")
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

    def poll(self) -> None:
        self.queue_successor()
        facts = self.scheduler.facts()
        deadline = self.scheduler.deadline(facts)
        if deadline is not None and deadline != self.deadline:
            self.deadline = deadline
            self.write_deadline()
        cause = scheduler_cause(facts, self.scheduler.restart_count)
        if self.budget_ends is not None and time.time() + self.job.poll_seconds > self.budget_ends:
            self.tell_ranks("budget")
        foreign_late = self.job.command is not None and self.deadline is not None
        if cause == "preemption":  # its grace is a new deadline
            self.tell_ranks(cause, facts)
        elif foreign_late and time.time() > self.deadline - self.job.lead_seconds:  # type: ignore[operator]
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
            self.words.append(why)
            grace = why == "preemption" and facts is not None and facts.state == "RUNNING"
            until = f"until {facts.end_time:.0f}\n" if grace and facts and facts.end_time else ""
            write_atomic(self.run.stop_word(self.claim.epoch), f"{why}\n{until}")

    # --- how it ended ---

    def record(self, step: Step, facts: JobFacts | None) -> dict[str, Any]:
        exits, hosts = read_ends(self.run, self.claim.epoch, step.layout.world_size), self.scheduler.hosts()
        reason = self.stop_reason()
        why = foreign_cause if step.foreign else attempt_cause
        cause = why(exits, scheduler_cause(facts, self.scheduler.restart_count), reason)
        if cause == "crash" and all(end.unknown for end in exits) and (ended := refused_for_the_end(self.srun_words())):
            cause, reason = ended, self.srun_words()
        if self.stuck and cause in (*FAILURES, "signal"):
            # Its dead step keeps the GPUs: Slurm would let the next one of this job wait as long.
            cause, reason = "node_failure", "a node's slurmstepd is gone: srun did not end with its ranks"
        return {
            "attempt": self.claim.epoch,
            "job_id": self.scheduler.job_id,
            "restart_count": self.scheduler.restart_count,
            "start": self.claim.time,
            "end": time.time(),
            "cause": cause,
            "reason": self.detail(cause, exits, reason),
            **self.steps(),
            "exits": dict(Counter(str(e).split(": ")[1] for e in exits)),
            "hosts": hosts,
            "failed_on": failed_node(cause, exits, first_failure(self.run, self.claim.epoch), hosts),
        }

    def steps(self) -> dict[str, Any]:
        if self.job.command is not None:
            return progress.since(self.run, self.job.progress, self.claim.epoch)
        return {"first_step": self.first_step, "committed_step": self.run.committed_step()}

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
            words = self.srun_words()
            return f"no rank left an exit record{f': {words}' * bool(words)}"
        if cause in ("crash", "config", "hang", "oom"):
            return failure(self.run, self.claim.epoch, cause, exits)
        return reason or ""

    def srun_words(self) -> str:
        return srun_words(job_log(self.run, self.scheduler.job_id), self.log_start)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def describe(record: dict[str, Any]) -> str:
    """An attempt's end in one line."""
    steps = f"steps {record['first_step']} to {record['committed_step']}"
    reason = f": {record['reason']}" if record["reason"] else ""
    seconds = record["end"] - record["start"]
    return f"attempt {record['attempt']} ended after {seconds:.0f} s ({steps}) by {record['cause']}{reason}"
