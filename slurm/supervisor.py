"""The batch host's process: it owns signals, the ranks' step, the cause of every end, and what follows.

`exec python -m slurm.supervisor RUN_DIR` is the last line of submission.sh; local mode starts the same module.
Ranks and containers never call Slurm: only this process does, after it has looked whether the run is still its own.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

from durable import write_atomic
from settings import ConfigError
from slurm import commands, environment, progress
from slurm.attempt import Attempt, describe
from slurm.causes.cause import FAILURES, Decision, Next, decide, predecessor_cause, scheduler_cause
from slurm.causes.ends import trained
from slurm.causes.logs import last_words
from slurm.commands import JobFacts
from slurm.config import Event, JobConfig, read_job
from slurm.errors import CommandFailed, SlurmError
from slurm.exits import CONFIG, NO_PROGRESS, STOP_SIGNALS, STOPPED
from slurm.node.shim import WAITED
from slurm.notify import Notifier
from slurm.rundir import Claim, RunDir
from slurm.scheduler import Here, Local, Scheduler, Slurm
from slurm.watch.pace import allocated_seconds

# Ranks that start anew in what is left of an allocation need time to load and to train.
WORTH_A_RESTART = 30.0  # seconds
PATIENCE = 5  # times that a controller is asked which is silent, or refuses for now
LEAVING = 600.0  # seconds for which a job before us may be at its end: KillWait and an epilog, not a node that hangs


class Supervisor:
    def __init__(self, run: RunDir, job: JobConfig, scheduler: Scheduler, after: str | None) -> None:
        self.run, self.job, self.scheduler, self.after = run, job, scheduler, after
        self.epoch = 0
        self.refusal = ""
        """Why no successor could be queued; it is tried again at every look, and said when it changes."""
        self.notifier = Notifier(run, job.notify)

    def supervise(self) -> int:
        """Attempts until the run is over, or another job takes it on. Returns the exit code of the batch job."""
        while not self.settled():
            if (claim := self.claim()) is not None:  # else another came first: look anew at how things stand
                return self.own(claim)
        return 0

    def own(self, claim: Claim | None) -> int:
        while claim is not None:
            self.queue_successor()
            step, launcher = progress.reached(self.run), self.job.launcher
            say(text := f"attempt {claim.epoch} starts at step {step}: {self.job.layout}, {launcher}")
            first = claim.epoch == self.run.resumed_after() + 1
            self.tell("start" if first else "continuation", text, step)
            seen = self.cancel_run, self.queue_successor
            attempt = Attempt(self.run, self.job, self.scheduler, claim, *seen, self.budget_ends())
            record = attempt.execute()
            self.run.record_attempt(record)
            say(describe(record))
            code = self.follow(attempt.deadline)
            if code is not None:
                if self.job.command is None and record["cause"] in FAILURES and self.owns_run():
                    attempt.forget()  # last: Slurm may take the nodes while somebody is still to go on
                return code
            claim = None if self.user_ended() else self.claim()
        return STOPPED if self.run.cancelled else 0

    def claim(self) -> Claim | None:
        """The attempt after the one that we know, so that nobody's claim between the two is overrun."""
        job_id, restarts = self.scheduler.job_id, self.scheduler.restart_count
        claim = self.run.claim(job_id, restarts, after=self.epoch, ranks=self.job.world_size)
        if claim is not None:
            self.epoch = claim.epoch
        return claim

    # --- at the start ---

    def user_ended(self) -> bool:
        """The run is over, or was asked to stop: no new ranks."""
        if not self.run.over and self.run.stop_file.exists():
            self.end(Decision(Next.STOP, "by the user's word", STOPPED, "stop"))
        elif self.run.over:
            say(f"nothing to do: {'the run is done' if self.run.done else 'the run was cancelled'}")
        return self.run.over

    def settled(self) -> bool:
        """Nothing is to be done: the run is over, or its user cancelled the job before us."""
        self.epoch = self.run.newest_epoch()
        if self.user_ended():
            return True
        if (rival := self.rival()) is not None:
            say(f"job {rival} runs this run already: leaving everything to it")
            return True
        self.record_our_job()
        before = self.job_before()
        cause = self.predecessor_cause(before)
        self.record_lost_attempts(cause)
        if cause == "cancel":
            # Also a scancel that hit during a preemption's grace, or that killed the supervisor before it could write.
            self.run.cancel("cancel", f"job {before} was cancelled (scancel)")
            say(f"job {before} was cancelled: the run ends here")
            return True
        # Supervisors that die at once must not chain for ever, nor one that died between its decision and its deed.
        decision = self.decide()
        if decision.next in (Next.STOP, Next.FINISH):
            self.end(decision)
            return True
        return False

    def rival(self) -> str | None:
        """Another job that is at this run now: it was sent twice, by hand perhaps, and we are the second."""
        claim = self.run.read_claim(self.run.newest_epoch())
        if claim is None or claim.job_id in (None, self.after, self.scheduler.job_id):
            return None
        if claim.epoch <= self.run.resumed_after():  # its user has taken the run from it since
            return None
        try:
            facts = commands.show_job(str(claim.job_id))
        except CommandFailed:  # the claims decide: who claims later fences the other
            return None
        ours = facts is not None and facts.state == "RUNNING" and facts.name.startswith(self.job.name)
        return claim.job_id if ours else None

    def record_our_job(self) -> None:
        """A plain `sbatch submission.sh` is a job of this run as well: `stop` must find it. An allocation is not."""
        job_id = self.scheduler.job_id
        if isinstance(self.scheduler, Here):
            return
        if job_id is not None:  # of an array of its own all tasks are this run's, of its sweep's this one
            ours = commands.sent_as(job_id) if self.job.continue_by == "array" else job_id
            self.run.record_job(ours, self.after)

    def job_before(self) -> str | None:
        """Who held the run last; whom we were queued behind, when its user has resumed the run since, or nobody did."""
        claim = self.run.read_claim(self.epoch)
        return self.after if claim is None or self.epoch <= self.run.resumed_after() else claim.job_id

    def predecessor_cause(self, before: str | None) -> str:
        """Why the job before this one ended: Slurm's word, its accounting's, else what that job wrote itself."""
        if before is None:
            return "crash"
        if before == self.scheduler.job_id:
            return "requeued"
        if (facts := self.facts_of_the_end(before)) is not None:
            return predecessor_cause(facts)
        written = [record["cause"] for record in self.run.attempts() if record["job_id"] == before]
        return str(written[-1]) if written else "crash"

    def facts_of_the_end(self, before: str) -> JobFacts | None:
        """Of the job before us. None: Slurm does not know it, or does not answer.

        A dependency waits for a job's whole end, an array does not: its next task may start while the ranks of the one
        before still save on other nodes (job_array_start_test counts no task that is COMPLETING)."""
        silent, began = 0, time.monotonic()
        while silent < PATIENCE:
            try:
                facts = commands.show_job(before) or commands.accounted_job(before)
            except CommandFailed as error:
                say(f"job {before} could not be asked for: {error}")
                silent += 1
            else:
                waited = time.monotonic() - began
                if facts is None or facts.state != "COMPLETING" or waited > LEAVING:
                    return facts
                say(f"job {before} still leaves its nodes: waiting for its end")
            time.sleep(self.job.poll_seconds)
        return None

    def record_lost_attempts(self, cause: str) -> None:
        """Attempts whose supervisor was killed before it could write their end."""
        known = {record["attempt"] for record in self.run.attempts()}
        for epoch in range(1, self.run.newest_epoch() + 1):
            claim = self.run.read_claim(epoch)
            if epoch not in known and claim is not None:
                resumed = (claim.resume_from or {}).get("step", 0)
                lost = {"attempt": epoch, "job_id": claim.job_id, "restart_count": claim.restart_count}
                start, last = claim.time, max(claim.time, self.last_sign(epoch))
                if self.job.command is not None:
                    steps = progress.since(self.run, self.job.progress, epoch)
                else:
                    steps = trained(self.run, epoch, resumed, start, last)
                about = {"start": start, "end": last, "ranks": claim.ranks, "starter": claim.starter}
                end = {"cause": cause, "reason": "its supervisor was killed", "exits": {}, "hosts": []}
                host = claim.host if cause == "node_failure" else None
                self.run.record_attempt({**lost, **about, **steps, **end, "failed_on": host})

    def last_sign(self, epoch: int) -> float:
        """Unix time at which an attempt last wrote into its logs."""
        return max((file.stat().st_mtime for file in self.run.attempt_dir(epoch).glob("*")), default=0.0)

    def queue_successor(self) -> None:
        try:
            done = self.scheduler.queue_successor() if self.owns_run() and not self.run.over else None
            if done:
                say(done)
        except CommandFailed as error:
            if str(error) != self.refusal:
                say(f"no successor could be queued: {error}")
            self.refusal = str(error)

    # --- at the end of an attempt ---

    def follow(self, deadline: float | None) -> int | None:
        """Act on the last attempt's end. Returns the batch job's exit code, or None: new ranks here."""
        if not self.owns_run():
            say("another attempt owns the run: leaving everything to it")
            return 0
        decision = self.decide()
        match decision.next:
            case Next.FINISH | Next.STOP:
                self.end(decision)
                return decision.code
            case Next.HERE if deadline is None or deadline - time.time() > WORTH_A_RESTART + decision.delay:
                if not self.lost_while_waiting(decision.delay):
                    return None
        return self.hand_over()

    def lost_while_waiting(self, seconds: float) -> bool:
        """Whether Slurm takes the nodes before new ranks start on them. A signal ends the wait."""
        say(f"new ranks start in this allocation{f' in {seconds:.0f} s' * (seconds > 0)}")
        info = signal.sigtimedwait(STOP_SIGNALS, seconds)
        if info is None:
            return False
        if info.si_signo == signal.SIGINT:
            write_atomic(self.run.stop_file, "Ctrl-C\n")
            return False
        cause = scheduler_cause(self.scheduler.facts(), self.scheduler.restart_count)
        if cause == "cancel":
            self.cancel_run("scancel")
        return cause not in (None, "cancel")

    def hand_over(self) -> int | None:
        """Our last act in Slurm. Returns the batch job's exit code, or None: it is this process that goes on."""
        for _ in range(PATIENCE):
            try:
                who = self.scheduler.go_on()
            except CommandFailed as error:
                say(f"nobody goes on yet: {error}")
                time.sleep(self.job.poll_seconds)
            else:
                say(who or "new ranks start in this process")
                return None if who is None else self.scheduler.unfinished
        say(f"go on with launch.py resume {self.run.name}")
        return 1

    def decide(self) -> Decision:
        foreign = self.job.command is not None
        limits = self.job.max_attempts, self.gpu_hours(), self.job.max_gpu_hours
        return decide(self.attempts(), *limits, steps_known=not foreign)

    def attempts(self) -> list[dict[str, Any]]:
        """Those since the run was last resumed by its user, but for those that have fenced us."""
        known = range(self.run.resumed_after() + 1, self.epoch + 1)
        return [record for record in self.run.attempts() if record["attempt"] in known]

    def gpu_hours(self) -> float:
        return allocated_seconds(self.attempts()) / 3600 * self.job.world_size

    def budget_ends(self) -> float | None:
        """Unix seconds at which the user's GPU-hours are used up, when ranks start now."""
        if self.job.max_gpu_hours is None:
            return None
        return time.time() + (self.job.max_gpu_hours - self.gpu_hours()) * 3600 / self.job.world_size

    def end(self, decision: Decision) -> None:
        """The run is done, or ends unfinished: `resume` lifts that."""
        if decision.next is Next.FINISH:
            if not self.run.done:
                self.run.write_done("the command ended with exit code 0")
            said = "done"
        else:
            lines = last_words(self.run, self.epoch) if decision.code == NO_PROGRESS else []
            if not self.run.over:
                self.run.cancel(decision.cause or self.run.attempts()[-1]["cause"], decision.reason, lines)
            ends = f"the run ends unfinished at step {progress.reached(self.run)}: {decision.reason}"
            said = "\n".join([ends, *lines])
        self.cancel_successor()
        self.mail_the_end()
        self.run.stop_file.unlink(missing_ok=True)
        say(said)
        event: Event = "no_progress" if decision.code == NO_PROGRESS else "stop"
        self.tell("done" if decision.next is Next.FINISH else event, said, progress.reached(self.run))

    def tell(self, event: Event, text: str, step: int) -> None:
        self.notifier.tell(event, text, step=step, attempt=self.epoch, job=self.scheduler.job_id)

    def mail_the_end(self) -> None:
        """Of a sweep's runs the last one does it for all."""
        try:
            if self.owns_run() and all(run.over for run in ([] if self.run.sweep is None else self.run.sweep.runs)):
                self.scheduler.mail_the_end()
        except CommandFailed as error:
            say(f"no mail will tell of the end: {error}")

    def cancel_run(self, reason: str) -> None:
        """The user's scancel: within milliseconds, since Slurm ends this process soon."""
        if self.owns_run() and not self.run.over:
            self.run.cancel("cancel", reason)
            self.cancel_successor()

    def cancel_successor(self) -> None:
        try:
            if self.owns_run():
                self.scheduler.cancel_successor()
        except CommandFailed as error:  # it will see DONE or CANCELLED and leave by itself
            say(f"the successor could not be cancelled: {error}")

    def owns_run(self) -> bool:
        """Looked at before every call that changes something in Slurm: a lost node's supervisor may come back."""
        return self.run.newest_epoch() == self.epoch


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} outlast: {text}", flush=True)


def make_scheduler(run: RunDir, job: JobConfig, here: bool) -> Scheduler:
    if job.cluster == "local":
        return Local(job)
    of_array = here or job.continue_by == "array" or run.sweep is not None
    allocation = environment.allocation(array=of_array)
    if allocation.job_id is None:
        raise SlurmError(f"this is no Slurm job: submit it with sbatch {run.script}")
    if here:
        return Here(run, job, allocation)
    slurm = Slurm(run, job, allocation)
    slurm.take_name(slurm.facts())
    return slurm


def main(argv: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes, or its connection, ends no run
    run = RunDir(Path(argv[0]))
    after = argv[argv.index("--after") + 1] if "--after" in argv else None
    try:
        job = read_job(run.path)
        supervisor = Supervisor(run, job, make_scheduler(run, job, here="--here" in argv), after)
        code = supervisor.supervise()
        supervisor.notifier.finish()
        return code
    except ConfigError as error:
        say(str(error))
        return CONFIG
    except (SlurmError, OSError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
