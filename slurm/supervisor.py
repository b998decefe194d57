"""The batch host's process: it owns signals, the ranks' step, the cause of every end, and what follows.

`exec python -m slurm.supervisor RUN_DIR` is the last line of submission.sh; local mode starts the same module.
Ranks and containers never call Slurm: only this process does, after it has looked whether the run is still its own.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from settings import ConfigError
from slurm import commands, environment, progress
from slurm.attempt import Attempt, describe
from slurm.cause import Decision, Next, decide, predecessor_cause
from slurm.config import JobConfig, read_job
from slurm.errors import CommandFailed, SlurmError
from slurm.exits import CONFIG
from slurm.rundir import RunDir
from slurm.scheduler import Here, Local, Scheduler, Slurm
from slurm.shim import WAITED

# Ranks that start anew in what is left of an allocation need time to load and to train.
WORTH_A_RESTART = 30.0  # seconds
PATIENCE = 5  # questions to a silent controller about the job before us


class Supervisor:
    def __init__(self, run: RunDir, job: JobConfig, scheduler: Scheduler, after: str | None) -> None:
        self.run, self.job, self.scheduler, self.after = run, job, scheduler, after
        self.epoch = 0

    def supervise(self) -> int:
        """Attempts until the run is over, or another job takes it on. Returns the exit code of the batch job."""
        if self.settled():
            return 0
        while True:
            claim = self.run.claim(self.scheduler.job_id, self.scheduler.restart_count)
            self.epoch = claim.epoch
            self.queue_successor()
            step, launcher = self.run.committed_step() or progress.step(self.run) or 0, self.job.launcher
            say(f"attempt {claim.epoch} starts at step {step}: {self.job.layout}, {launcher}")
            attempt = Attempt(self.run, self.job, self.scheduler, claim, self.cancel_run, self.queue_successor)
            record = attempt.execute()
            self.run.record_attempt(record)
            say(describe(record))
            code = self.follow(attempt.deadline)
            if code is not None:
                return code

    # --- at the start ---

    def settled(self) -> bool:
        """Nothing is to be done: the run is over, or its user cancelled the job before us."""
        if self.run.over:
            say(f"nothing to do: {'the run is done' if self.run.done else 'the run was cancelled'}")
            return True
        if (rival := self.rival()) is not None:
            say(f"job {rival} runs this run already: leaving everything to it")
            return True
        self.record_our_job()
        cause = self.predecessor_cause()
        lost = self.record_lost_attempts(cause)
        if cause == "cancel":
            # Also a scancel that hit during a preemption's grace, or that killed the supervisor before it could write.
            self.run.cancel("cancel", f"job {self.after} was cancelled (scancel)")
            say(f"job {self.after} was cancelled: the run ends here")
            return True
        decision = self.decide() if lost else None  # supervisors that die at once must not chain for ever
        if decision is not None and decision.next is Next.STOP:
            self.end_run(decision)
            return True
        return False

    def rival(self) -> str | None:
        """Another job that is at this run now: it was sent twice, by hand perhaps, and we are the second."""
        claim = self.run.read_claim(self.run.newest_epoch())
        if claim is None or claim.job_id in (None, self.after, self.scheduler.job_id):
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
        if job_id is not None and all(record["job"] != job_id for record in self.run.jobs()):
            self.run.record_job(job_id, self.after)

    def predecessor_cause(self) -> str:
        """Why the job before this one ended: Slurm's word, its accounting's, else what that job wrote itself."""
        if self.after is None:
            return "requeued" if self.scheduler.restart_count else "crash"
        for _ in range(PATIENCE):
            try:
                facts = commands.show_job(self.after) or commands.accounted_job(self.after)
                break
            except CommandFailed as error:
                say(f"job {self.after} could not be asked for: {error}")
                time.sleep(self.job.poll_seconds)
        else:
            facts = None
        if facts is not None:
            return predecessor_cause(facts)
        written = [record["cause"] for record in self.run.attempts() if record["job_id"] == self.after]
        return str(written[-1]) if written else "crash"

    def record_lost_attempts(self, cause: str) -> bool:
        """Attempts whose supervisor was killed before it could write their end. Returns whether there were any."""
        found = False
        known = {record["attempt"] for record in self.run.attempts()}
        for epoch in range(1, self.run.newest_epoch() + 1):
            claim = self.run.read_claim(epoch)
            if epoch not in known and claim is not None:
                resumed = (claim.resume_from or {}).get("step", 0)
                lost = {"attempt": epoch, "job_id": claim.job_id, "restart_count": claim.restart_count}
                times = {"start": claim.time, "end": max(claim.time, self.last_sign(epoch)), "exits": {}, "hosts": []}
                steps: dict[str, object] = {"first_step": resumed, "committed_step": self.run.committed_step()}
                if self.job.command is not None:
                    steps = progress.since(self.run, self.job.progress, epoch)
                self.run.record_attempt({**lost, **times, **steps, "cause": cause, "reason": "its batch host was lost"})
                found = True
        return found

    def last_sign(self, epoch: int) -> float:
        """Unix time at which an attempt last wrote into its logs."""
        return max((file.stat().st_mtime for file in self.run.attempt_dir(epoch).glob("*")), default=0.0)

    def queue_successor(self) -> None:
        try:
            done = self.scheduler.queue_successor() if self.owns_run() and not self.run.over else None
            if done:
                say(done)
        except CommandFailed as error:
            say(f"no successor could be queued: {error}")

    # --- at the end of an attempt ---

    def follow(self, deadline: float | None) -> int | None:
        """Act on the last attempt's end. Returns the batch job's exit code, or None: new ranks here."""
        decision = self.decide()
        match decision.next:
            case Next.LEAVE:
                say("another attempt owns the run: leaving everything to it")
                self.scheduler.cancel_successor()  # ours alone: it would fence the owner
                return 0
            case Next.FINISH:
                if not self.run.done:
                    self.run.write_done("the command ended with exit code 0")
                self.cancel_successor()
                say("done")
                return 0
            case Next.STOP:
                self.end_run(decision)
                return decision.code
            case Next.HERE if deadline is None or deadline - time.time() > WORTH_A_RESTART:
                say("new ranks start in this allocation")
                return None
        self.queue_successor()
        return 0 if self.scheduler.go_on(self.scheduler.facts()) else None

    def decide(self) -> Decision:
        """By the attempts since the run was last resumed by its user."""
        attempts = [record for record in self.run.attempts() if record["attempt"] > self.run.resumed_after()]
        seconds: float = sum(record["end"] - record["start"] for record in attempts)
        hours, foreign = seconds / 3600 * self.job.world_size, self.job.command is not None
        return decide(attempts, self.job.max_attempts, hours, self.job.max_gpu_hours, steps_known=not foreign)

    def end_run(self, decision: Decision) -> None:
        """The run ends unfinished; `resume` lifts it."""
        if not self.run.over:
            self.run.cancel(decision.cause or self.run.attempts()[-1]["cause"], decision.reason)
        self.cancel_successor()
        self.run.stop_file.unlink(missing_ok=True)
        say(f"the run ends unfinished at step {self.run.committed_step()}: {decision.reason}")

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
    allocation = environment.allocation()
    if allocation.job_id is None:
        raise SlurmError(f"this is no Slurm job: submit it with sbatch {run.script}")
    if here:
        return Here(run, job, allocation)
    slurm = Slurm(run, job, allocation)
    slurm.take_name(slurm.facts())
    return slurm


def main(argv: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    run = RunDir(Path(argv[0]))
    after = argv[argv.index("--after") + 1] if "--after" in argv else None
    try:
        job = read_job(run.path)
        return Supervisor(run, job, make_scheduler(run, job, here="--here" in argv), after).supervise()
    except ConfigError as error:
        say(str(error))
        return CONFIG
    except (SlurmError, OSError) as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
