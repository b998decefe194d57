"""A simulated Slurm around the real supervisor: jobs, deaths at any call, two at once, the user's word; from one seed.

Everything between the supervisor and the world goes through `Simulation.moment`: there the supervisor may die (its node,
or a kill -9), and there other jobs may run to their ends while this one stands still, as a node that comes back does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slurm import supervisor
from slurm.causes.cause import Next, decide
from slurm.causes.reasons import ENDED
from slurm.commands import JobFacts, QueueLine, sent_as
from slurm.config import JobConfig
from slurm.environment import Allocation
from slurm.errors import CommandFailed, ControllerAway
from slurm.rundir import Claim
from slurm.scheduler import Slurm
from tests.slurm.memory_run import MemoryRun

TOTAL = 6  # commits until a run is done
ARRAY = 3  # jobs of an array
MOST_JOBS = 100
DEEPEST = 2  # zombies at once

# Of each moment of a supervisor's life.
DEATH, STANDSTILL, SECOND_SBATCH, SCANCEL, SILENCE = 0.01, 0.01, 0.005, 0.002, 0.01
BESIDE, LEFT = 0.3, 0.5  # a task of an array starts beside one that leaves; that one has left by the next question
# Of each attempt, how it ends; "progress" is a time limit after a commit at least.
ENDS = {
    "progress": 6.0,
    "timeout": 3.0,
    "preemption": 2.0,
    "node_failure": 1.0,
    "crash": 4.0,
    "signal": 1.0,
    "cancel": 0.3,
    "stop": 0.3,
}


class Died(BaseException):
    """The supervisor's process is gone: no handler of its own runs."""


@dataclass
class Job:
    id: str
    after: str | None
    requeue: bool
    """Slurm starts it again after the loss of its node."""
    state: str = "PENDING"
    reason: str = "None"
    restarts: int = 0
    preempted: bool = False
    cancelled: bool = False
    """By its user, which shows in its state only when it has ended."""


class Simulation:
    """One history: `live()` runs it to its end. Raises AssertionError where a property does not hold."""

    def __init__(self, seed: int, continue_by: str) -> None:
        self.random = random.Random(seed)
        self.run = MemoryRun(Path("/nonexistent/run"), sim=self)
        self.site = self.random.choice(["plain", "plain", "one job a user", "no requeue", "preempts by cancel"])
        if continue_by == "array" and self.site == "one job a user":
            continue_by = "chain"  # as launch.py falls back when it sends
        self.config = JobConfig(name="x", cluster="sim", continue_by=continue_by, poll_seconds=0.001)  # type: ignore[arg-type]
        self.jobs: dict[str, Job] = {}
        self.sent = 0
        self.running: list[Job] = []
        """Jobs whose supervisors live, the innermost last; all others of them are zombies."""
        self.users_word = False
        """The user has cancelled or stopped the run: from here on no attempt may begin."""
        self.orphaned = False
        """Nobody waits behind a supervisor that died, or that could do nothing, and Slurm does not start it again."""
        self.log: list[str] = []

    def live(self) -> None:
        self.queue(None)
        self.live_on()
        while self.orphaned and not self.run.over and not self.users_word:
            self.users_resume()
            self.live_on()
        self.check_end()

    def live_on(self) -> None:
        while (job := self.eligible()) is not None:
            self.start(job)

    def users_resume(self) -> None:
        """What `status` shows as interrupted, and tells to do."""
        self.tell("(the user resumes it)")
        self.orphaned = False
        self.run.memory["resumed"] = self.run.newest_epoch()
        self.queue(None)

    # --- Slurm ---

    def queue(self, after: str | None) -> str:
        """Returns the id of what was sent: of a job, or of an array of them."""
        assert len(self.jobs) < MOST_JOBS, f"{len(self.jobs)} jobs: it does not end\n{self.story()}"
        self.sent += 1
        name = str(100 + self.sent)
        array = [f"{name}_{task + 1}" for task in range(ARRAY)]
        for job_id in array if self.config.continue_by == "array" else [name]:
            self.jobs[job_id] = Job(job_id, after, requeue=self.site != "no requeue")
        return name

    def eligible(self) -> Job | None:
        """The next that may start: of several any."""

        def free(job: Job) -> bool:
            alone = not any(other.state in ("RUNNING", "COMPLETING") for other in self.array(job))
            return alone and (job.after is None or self.jobs[job.after].state in ENDED)

        waiting = [job for job in self.jobs.values() if job.state == "PENDING" and free(job)]
        return self.random.choice(waiting) if waiting else None

    def array(self, job: Job) -> list[Job]:
        """The others of its array."""
        return [one for one in self.jobs.values() if one is not job and sent_as(one.id) == sent_as(job.id)]

    def start(self, job: Job) -> None:
        job.state, job.reason, job.preempted = "RUNNING", "None", False
        self.tell(f"job {job.id} (after {job.after}, restarts {job.restarts}) starts")
        slurm = Slurm(self.run, self.config, Allocation(job.id, job.restarts, "n1"))
        self.running.append(job)
        end = "COMPLETED"
        try:
            stuck = supervisor.Supervisor(self.run, self.config, slurm, job.after).supervise() == 1
            # A second job is refused, and a job that is preempted by a cancel looks like one that its user cancels.
            self.orphaned |= stuck and self.site == "one job a user" and job.preempted
        except Died:
            end = self.random.choice(["NODE_FAIL", "FAILED"])
        self.running.pop()
        self.finish(job, end)

    def finish(self, job: Job, end: str) -> None:
        """Its supervisor is gone. A zombie's job has ended long ago, or lives anew."""
        if job.state == "RUNNING":
            job.state = end
            self.after_a_loss(job)
        elif job.state == "COMPLETING":
            self.left(job)
            if end != "COMPLETED":
                self.after_a_loss(job)
        self.tell(f"job {job.id} is {job.state}")

    def after_a_loss(self, job: Job) -> None:
        if job.state == "NODE_FAIL" and job.requeue:
            self.again(job)
        elif job.state != "COMPLETED" and not any(self.waits_behind(job)):
            self.orphaned = True

    def waits_behind(self, job: Job) -> Iterator[bool]:
        yield from (other.after == job.id for other in self.jobs.values())
        yield from (other.state == "PENDING" for other in self.array(job))

    def again(self, job: Job) -> None:
        job.state, job.restarts = "PENDING", job.restarts + 1

    def moment(self, scancel: bool = True) -> None:
        """Anything may happen to a supervisor between two of its acts."""
        dice = self.random.random()
        if dice < DEATH:
            self.tell("  (dies)")
            raise Died
        if dice < DEATH + STANDSTILL:
            self.stand_still()
        elif dice < DEATH + STANDSTILL + SECOND_SBATCH and len(self.jobs) < 8 and not self.users_word:
            self.queue(None)  # `sbatch submission.sh` by hand, though the run goes on
        elif dice > 1 - SCANCEL and scancel and self.holds_the_run(self.running[-1]):
            self.tell("  (is cancelled)")
            self.scancel(self.running[-1])

    def holds_the_run(self, job: Job) -> bool:
        """To cancel another, of several that were sent by hand, is no word about the run."""
        claim = self.run.read_claim(self.run.newest_epoch())
        return job.state == "RUNNING" and claim is not None and claim.job_id == job.id

    def scancel(self, job: Job) -> None:
        """The user's."""
        job.cancelled = self.users_word = True
        self.leave(job)

    def leave(self, job: Job) -> None:
        """Slurm ends it. Of an array the next task may start meanwhile; when that is through, this supervisor is gone."""
        job.state = "COMPLETING"
        next_one = next((other for other in self.array(job) if other.state == "PENDING"), None)
        if next_one is not None and len(self.running) <= DEEPEST and self.random.random() < BESIDE:
            self.start(next_one)
            if job.state != "COMPLETING":
                raise Died

    def left(self, job: Job) -> None:
        job.state = "CANCELLED" if job.cancelled else "PREEMPTED" if job.preempted else "TIMEOUT"

    def stand_still(self) -> None:
        """Our node is lost to Slurm: others go on with the run, and then we wake up as a zombie."""
        job = self.running[-1]
        if job.state != "RUNNING" or len(self.running) > DEEPEST:
            return
        job.state = "NODE_FAIL"
        self.after_a_loss(job)
        for _ in range(self.random.randrange(4)):
            if (other := self.eligible()) is not None:
                self.start(other)
        self.tell(f"  (job {job.id} wakes up as a zombie)")

    # --- what the supervisor calls ---

    def asked(self, scancel: bool = True) -> None:
        self.moment(scancel)
        if self.random.random() < SILENCE:
            raise ControllerAway("no answer")

    def show_job(self, job_id: str) -> JobFacts | None:
        self.asked()
        job = self.jobs[job_id]
        if job.state == "COMPLETING" and job is not self.running[-1] and self.random.random() < LEFT:
            self.left(job)
        reason = "NodeDown" if job.state == "NODE_FAIL" else job.reason
        return JobFacts(job_id, "x", job.state, reason, job.restarts, None, 1.0 if job.preempted else None)

    def jobs_of(self, log_folders: set[str], patience: float = 0.0) -> list[QueueLine]:
        self.asked()
        return [QueueLine(job.id, job.state, "None", "1", job.after, "x") for job in self.jobs.values()]

    def submit(self, script: Path, after: str, name: str, exclude: str | None = None) -> str:
        self.asked()
        if self.site == "one job a user":
            raise CommandFailed("AssocMaxSubmitJobLimit")
        job_id = self.queue(after)
        self.moment()
        return job_id

    def cancel(self, *job_ids: str) -> None:
        self.asked()
        for job in map(self.jobs.__getitem__, job_ids):
            assert job.state != "RUNNING", f"a job that runs is cancelled by another\n{self.story()}"
            if job.state == "PENDING":
                job.state = "CANCELLED"

    def requeue(self, job_id: str) -> None:
        self.asked(scancel=False)  # between the last look and this it would be revived: some milliseconds
        job = self.jobs[job_id]
        if not job.requeue:
            raise CommandFailed("Requested operation is presently disabled")
        if job.state != "PENDING":  # it revives even what its user has cancelled (measured)
            self.again(job)

    def update(self, job_id: str, **fields: str) -> None:
        self.asked()
        if fields == {"Requeue": "0"}:
            self.jobs[job_id].requeue = False

    # --- what must hold ---

    def claimed(self, epoch: int) -> None:
        # The supervisor of a cancelled job hears of it when its ranks have started.
        heard = self.users_word and not self.running[-1].cancelled
        assert not heard, f"attempt {epoch} begins after its user's word\n{self.story()}"
        poisoned = decide(self.known(epoch)).next is Next.STOP
        assert not poisoned, f"attempt {epoch} begins though the last ones were in vain\n{self.story()}"

    def known(self, epoch: int) -> list[dict[str, Any]]:
        """Ends of the attempts before this one, since the user last resumed the run."""
        return [end for end in self.run.attempts() if self.run.resumed_after() < end["attempt"] < epoch]

    def commit(self, epoch: int) -> bool:
        """The trainer's: the claims are read again, then one rename. False: fenced."""
        self.moment()
        if self.run.newest_epoch() != epoch:
            return False
        commits = self.run.memory["commits"]
        assert not commits or commits[-1][0] <= epoch, f"epoch {epoch} commits after {commits[-1]}\n{self.story()}"
        commits.append((epoch, self.run.committed_step() + 1))
        return True

    def check_end(self) -> None:
        run, story = self.run, self.story()
        assert run.over or self.users_word, f"the run stopped though it could go on\n{story}"
        assert not run.done or run.committed_step() >= TOTAL, f"done too early\n{story}"
        if run.cancelled is not None and not run.done:
            poisoned = decide(self.known(run.newest_epoch() + 1)).next is Next.STOP
            assert self.users_word or poisoned, f"ended by nobody's word\n{story}"
        assert not any(job.state in ("PENDING", "RUNNING") for job in self.jobs.values()), f"left behind\n{story}"

    def tell(self, words: str) -> None:
        self.log.append("  " * len(self.running) + words)

    def story(self) -> str:
        ends = [f"attempt {record['attempt']}: {record['cause']}" for record in self.run.attempts()]
        return "\n".join([self.site, *self.log, *ends, str(self.run.memory["commits"]), str(self.run.cancelled)])


class SimulatedAttempt:
    """Ranks that commit or not, and end by one of the causes; what the real Attempt asks and tells, it asks and tells."""

    deadline = None

    def __init__(
        self, run: MemoryRun, job: JobConfig, scheduler: Slurm, claim: Claim, cancel_run: Any, *_: Any
    ) -> None:
        self.run, self.scheduler, self.claim, self.cancel_run = run, scheduler, claim, cancel_run
        self.sim: Simulation = run.sim
        self.first_step = run.committed_step()

    def execute(self) -> dict[str, Any]:
        cause = self.sim.random.choices(list(ENDS), list(ENDS.values()))[0]
        for _ in range(self.sim.random.randrange(3) + (cause == "progress")):
            if not self.sim.commit(self.claim.epoch):
                return self.record("fenced")
            if self.run.committed_step() >= TOTAL:
                self.run.write_done("trained")
                return self.record("done")
        return self.record(self.end("timeout" if cause == "progress" else cause))

    def forget(self) -> None:
        """Its nodes' memory is not looked at."""

    def end(self, cause: str) -> str:
        """What Slurm and its user do to the job; to a zombie's they have done it already."""
        job = self.sim.running[-1]
        if job.cancelled:
            self.cancel_run("scancel")
            return "cancel"
        if job.state != "RUNNING":
            return cause if cause in ("crash", "signal") else "node_failure"
        late = self.sim.random.random() < 0.3  # the ranks were not quick enough
        match cause:
            case "cancel":
                self.sim.scancel(job)
                self.cancel_run("scancel")
            case "stop":
                self.sim.users_word = self.run.memory["stop"] = True
            case "timeout" if late:
                job.reason = "TimeLimit"
                self.sim.leave(job)
            case "preemption":
                job.preempted = True
                if late and job.requeue and self.sim.site != "preempts by cancel":
                    self.sim.again(job)
                elif late:
                    self.sim.leave(job)
        return cause

    def record(self, cause: str) -> dict[str, Any]:
        facts = {"attempt": self.claim.epoch, "job_id": self.claim.job_id, "restart_count": self.claim.restart_count}
        steps = {"first_step": self.first_step, "committed_step": self.run.committed_step()}
        return {**facts, **steps, "start": 0.0, "end": 0.0, "cause": cause, "reason": "", "exits": {}, "hosts": []}


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Simulation], None]:
    """Puts a simulation in the place of all that is around a supervisor."""
    monkeypatch.setattr(supervisor, "Attempt", SimulatedAttempt)
    monkeypatch.setattr(supervisor, "say", lambda text: None)
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(supervisor.signal, "sigtimedwait", lambda signals, seconds: None)
    monkeypatch.setattr(supervisor, "last_words", lambda run, epoch: [])

    def put(sim: Simulation) -> None:
        for name in ("show_job", "jobs_of", "submit", "cancel", "requeue", "update"):
            monkeypatch.setattr(supervisor.commands, name, getattr(sim, name))

    return put
