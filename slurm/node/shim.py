"""What every launcher starts: a small process above the ranks of its task.

It gives them their environment, passes signals on, and writes each one's real end to `rank-0005.exit`, since launchers
blur it (srun returns 137 where a rank left with 75 first; torchrun returns 1 for everything). Itself it leaves with 0
when its ranks ended as agreed, so that srun sees a failure only where one is. Standard library only: 10 MB a rank.

Where something stands between a task and its ranks (a container, torchrun's or DeepSpeed's agent), there is a shim on
both sides of it: the upper one passes signals straight to the lower ones.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from durable import write_atomic
from slurm import environment
from slurm.errors import SlurmError
from slurm.exits import AGREED, BY_A_STOP, CONFIG, STOP_SIGNALS, UNFIT
from slurm.node import agents, below, hostfile, memory, node_local, node_memory, packed, preflight, rendezvous
from slurm.node.forked import become, open_log, preload, python_module, redirect, run_foreign, run_module
from slurm.step import CODE, Step, read_exits, shim_argv

WAITED = STOP_SIGNALS | {signal.SIGCHLD}
RENDEZVOUS_SECONDS = 600.0
TICK_SECONDS = 1.0
ORPHAN_SECONDS = 10.0
SAME_SIGNAL_SECONDS = 5.0  # where Slurm signals every process, a lower shim gets it from the upper one as well
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # the second: what a shell makes of it


@dataclass
class Child:
    """A rank's process; `rank` is None for what only stands between this shim and others: an agent, a container."""

    rank: int | None
    pid: int
    code: int | None = None
    memory: int | None = None
    """The most bytes that it held."""


class Shim:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.task = environment.task()
        self.parent = os.getppid()
        self.ranks = ranks_of(step, self.task)
        self.children: list[Child] = []
        self.signals: list[int] = []
        """Stop signals so far."""
        self.told: dict[int, int] = {}
        """How many of them each shim below has got."""
        self.heard: dict[str, float] = {}
        """What has asked a foreign command to stop, and when it was last passed on."""
        self.oom_kills = memory.oom_kills()
        self.ending = False
        """We have killed ranks of ours."""
        self.held: socket.socket | None = None
        """The rendezvous' port, until rank 0 has ended."""

    def run(self) -> int:
        """Start the ranks, stay until they ended; 0 when they ended as agreed."""
        below.adopt_orphans()
        try:
            self.start()
            self.watch()
        finally:
            send(signal.SIGKILL, below.all_below(os.getpid()))  # a rank's leftovers must not meet the next attempt
        verdict = self.verdict()
        if verdict == 0:  # what was staged is saved: after a failure the next attempt looks for it
            node_memory.forget(self.step.run.path, self.ranks)
        return verdict

    # --- before the start ---

    def fit(self) -> bool:
        """Whether ranks can run on this node. What speaks against it goes to the job's log: ours may take nothing."""
        found = preflight.look(self.step, self.task)
        for note in found.notes:
            print(f"outlast: {self.task.host}: {note}", file=sys.stderr)
        if found.unfit is not None:
            print(f"outlast: {self.task.host} is unfit: {found.unfit}", file=sys.stderr)
            for rank in self.ranks:
                self.write_exit(rank, UNFIT, unfit=found.unfit)
        return found.unfit is None

    def meet(self) -> rendezvous.Rendezvous:
        """The rendezvous: the first rank's shim chooses it, and holds its port; the others wait for it."""
        file = self.step.logs / "rendezvous.json"
        if self.ranks[0] == 0 and self.step.launcher != "worker":
            seed = f"{self.step.run_dir} {self.step.epoch}"
            host, address = self.task.host, self.task.launch_address
            how = self.step.host_suffix, rendezvous.nccl_interfaces(self.step.network)
            meeting, self.held = rendezvous.publish(file, host, address, self.step.nodes, seed, *how)
            return meeting
        return rendezvous.wait(file, RENDEZVOUS_SECONDS, lambda: not self.told_to_end())

    def told_to_end(self) -> bool:
        return signal.SIGTERM in signal.sigpending() and self.peer_crashed()

    def node_variables(self, meeting: rendezvous.Rendezvous) -> dict[str, str]:
        """What the ranks of this node share."""
        step = self.step
        hosts, progress = step.logs / "hostfile", step.run.progress_file
        out = environment.attempt_variables(step.run.path, step.epoch, step.deadline, step.cut_short, hosts, progress)
        # Without it every rank starts a thread for every core of its node. Under srun the CPUs are those of one rank.
        ranks = 1 if step.launcher == "srun" else step.ranks_per_node
        out["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, (self.task.cpus or 1) // ranks))
        out |= node_local.caches(step.node_local)
        out |= (network := rendezvous.network(step.network))
        if step.nodes > 1 and "GLOO_SOCKET_IFNAME" not in {*os.environ, *network}:
            names = rendezvous.nccl_interfaces(step.network)
            interface = rendezvous.gloo_interface(self.task.host, meeting.master_addr, names)
            out |= {"GLOO_SOCKET_IFNAME": interface} if interface else {}
        return out

    def rank_variables(self, meeting: rendezvous.Rendezvous, rank: int) -> dict[str, str]:
        """All of a rank's variables: agents set some of them, and not all alike."""
        names = environment.rank_variables(self.step.layout, rank, meeting.master_addr, meeting.master_port)
        return self.node_variables(meeting) | names | self.python_path(ours=not self.step.foreign)

    def python_path(self, ours: bool) -> dict[str, str]:
        """The user's own PYTHONPATH, after the folder of our code where that is what runs."""
        theirs = environment.without_path(os.environ, CODE)["PYTHONPATH"]
        paths = [*([str(CODE)] if ours else []), *filter(None, [theirs])]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    # --- starting ---

    def start(self) -> None:
        if self.step.prefix:
            return self.spawn([*self.step.prefix, *shim_argv(replace(self.step, prefix=()))], {}, None)
        meeting = self.meet()
        module = python_module(self.step.argv, self.step.foreign) if self.step.launcher == "fork" else None
        if agent := agents.AGENTS.get(self.step.launcher):
            argv = agent.argv(self.node(meeting))
            self.spawn(argv, self.node_variables(meeting) | self.python_path(ours=False), None)
        elif module is not None:
            self.fork_ranks(meeting, *module)
        else:
            for rank in self.ranks:
                self.spawn(self.step.argv, self.rank_variables(meeting, rank), rank)

    def node(self, meeting: rendezvous.Rendezvous) -> agents.Node:
        """For an agent; its workers are shims again, since it hides how a rank ended."""
        slots = hostfile.read(self.step.logs / "hostfile")
        worker, devices = shim_argv(replace(self.step, launcher="worker")), os.environ.get(environment.DEVICES)
        return agents.Node(self.task.node_rank, slots, devices, meeting.master_addr, meeting.master_port, worker)

    def spawn(self, argv: Sequence[str], variables: dict[str, str], rank: int | None) -> None:
        log = None if rank is None else open_log(self.step.logs / f"rank-{rank:04d}.log")
        try:
            process = subprocess.Popen(
                argv,
                env={**os.environ, **variables},
                stdout=log,
                stderr=log,
                preexec_fn=lambda: self.in_child(rank),
            )
        except OSError as error:  # the command is the user's: starting it again cannot help
            print(f"outlast: {argv[0]}: {error.strerror}", file=sys.stderr)
            for missing in self.ranks if rank is None else [rank]:
                self.write_exit(missing, CONFIG)
            raise SystemExit(CONFIG) from None
        finally:
            if log is not None:
                os.close(log)
        self.children.append(Child(rank, process.pid))
        process.returncode = 0  # reaped here, not by subprocess

    def in_child(self, rank: int | None) -> None:
        """Between fork and exec: the trainer starts with stop signals blocked, so that one that comes before its
        handlers stand waits instead of killing it. What stands in between never hears them. A foreign command gets
        the defaults."""
        below.die_with_parent(signal.SIGKILL)  # a shim killed by -9 takes its rank along
        below.call_me(below.RANK)
        signal.pthread_sigmask(signal.SIG_SETMASK, () if rank is not None and self.step.foreign else STOP_SIGNALS)

    def fork_ranks(self, meeting: rendezvous.Rendezvous, module: str, args: list[str]) -> None:
        """Import once, then one fork a rank, before any thread or device is started."""
        os.environ.update(self.node_variables(meeting))  # OpenMP reads its number of threads once, at the import
        if not self.step.foreign:  # nobody knows what a user's module starts when it is imported
            preload(module)
        gc.freeze()  # a collection in a child would copy every page that it shares
        for rank in self.ranks:
            pid = os.fork()
            if pid == 0:
                self.in_child(rank)
                log = self.step.logs / f"rank-{rank:04d}.log"
                become(lambda: self.run_module(module, args), self.rank_variables(meeting, rank), log)
            self.children.append(Child(rank, pid))

    def run_module(self, module: str, args: list[str]) -> None:
        if self.step.foreign:
            run_foreign(self.step.argv, module, args)
        else:
            run_module(module, args)

    # --- until the end ---

    def watch(self) -> None:
        while self.alive():
            self.wait()
        end = time.monotonic() + ORPHAN_SECONDS
        while self.shims_below() and time.monotonic() < end:  # their agent was lost: they end their ranks and say so
            self.wait()

    def wait(self) -> None:
        """Until something happens, and do what it asks for."""
        info = signal.sigtimedwait(WAITED, TICK_SECONDS)
        self.reap()
        if os.getppid() != self.parent:  # our launcher was killed: nobody would end these ranks
            send(signal.SIGKILL, (child.pid for child in self.alive()))
        elif info is None:
            self.tick()
        elif info.si_signo in STOP_SIGNALS:
            self.pass_on(info.si_signo)

    def shims_below(self) -> list[int]:
        """Shims below what stands in between, also those that have lost it."""
        between = any(child.rank is None for child in self.children)
        return below.shims_below(os.getpid()) if between else []

    def reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                for child in self.alive():
                    if child.pid == ended[0]:
                        child.code = os.waitstatus_to_exitcode(ended[1])
                        child.memory = ended[2].ru_maxrss * 1024
                        self.record(child)

    def record(self, child: Child) -> None:
        """The file stands before this process leaves: whoever hears of the crash can read of it."""
        code = child.code
        assert code is not None
        if child.rank is not None:
            oom = code in KILLED and not self.ending and memory.struck_since(self.oom_kills)
            known = {"oom": oom, "asked": bool(self.heard) and code in BY_A_STOP}
            told = {what: True for what, true in known.items() if true}
            self.write_exit(child.rank, code, memory=child.memory, **told)
        if self.crashed(code):
            self.end_ranks()  # this node's other ranks cannot go on without it

    def crashed(self, status: int) -> bool:
        """By a code, or a negative signal. A rank may die of the stop that it was asked for while its peers save."""
        return status not in AGREED and not (self.heard and status in BY_A_STOP)

    def write_exit(self, rank: int, code: int, **more: object) -> None:
        """The rank's record, for the supervisor and for the other shims."""
        end = {"rank": rank, "code": code if code >= 0 else None, "signal": -code if code < 0 else None}
        record = {**end, **more, "host": self.task.host, "time": time.time()}
        try:
            write_atomic(self.step.exit_file(rank), json.dumps(record))
        except OSError as error:  # a full disk must not end the ranks that are healthy
            print(f"outlast: {error}", file=sys.stderr)

    def tick(self) -> None:
        self.tell_shims()
        for source in self.asked() if self.step.foreign else ():
            self.ask(source)

    def asked(self) -> Iterator[str]:
        """Who asks for a stop by a file."""
        if self.step.run.stop_file.exists():
            yield "the user"
        with suppress(OSError):  # a word that changes is a new one
            yield from self.step.run.stop_word(self.step.epoch).read_text(encoding="utf-8").splitlines()[:1]

    def ask(self, source: str, again: float = math.inf) -> None:
        """A foreign command's ranks get their stop signal: once for each source, which is a new one after `again`
        seconds."""
        now, last = time.monotonic(), self.heard.get(source)
        if last is None or now - last > again:
            self.heard[source] = now
            self.signal_ranks(signal.Signals[f"SIG{self.step.stop_signal}"])

    def pass_on(self, signum: int) -> None:
        if signum == signal.SIGTERM and self.peer_crashed():
            self.end_ranks()  # nothing can be saved together any more
        self.signals.append(signum)
        if self.step.foreign:
            self.ask(signal.Signals(signum).name, again=SAME_SIGNAL_SECONDS)
        else:
            self.signal_ranks(signum)
        self.tell_shims()

    def signal_ranks(self, signum: int) -> None:
        send(signum, (child.pid for child in self.alive() if child.rank is not None))

    def tell_shims(self) -> None:
        """Every signal so far to every shim below, once: one that starts later gets them then."""
        for pid in self.shims_below() if self.signals else []:
            for signum in self.signals[self.told.get(pid, 0) :]:
                send(signum, [pid])
            self.told[pid] = len(self.signals)

    def peer_crashed(self) -> bool:
        ends = map(status_of, read_exits(self.step.logs).values())
        return any(end not in AGREED and not (self.step.foreign and end in BY_A_STOP) for end in ends)

    def end_ranks(self) -> None:
        """At once. Shims below end their own ranks, and write it down; what has none below it yet is killed."""
        self.ending = True
        between = [] if self.shims_below() else [child.pid for child in self.alive() if child.rank is None]
        self.signal_ranks(signal.SIGKILL)
        send(signal.SIGKILL, between)

    def alive(self) -> list[Child]:
        return [child for child in self.children if child.code is None]

    def verdict(self) -> int:
        """0 when all ended as agreed, else the first failure. What stands in between is judged by its ranks' files."""
        codes = [child.code or 0 for child in self.children]
        if any(child.rank is None for child in self.children):
            exits = read_exits(self.step.logs)
            codes = [status_of(exits.get(rank, {})) for rank in self.ranks]
        bad = next((code for code in codes if self.crashed(code)), 0)
        return bad if bad >= 0 else 128 - bad


def status_of(end: Mapping[str, Any]) -> int:
    """A rank's code by its record, of a signal the negative number; without a record it failed."""
    if end.get("signal") is not None:
        return -int(end["signal"])
    return int(end.get("code", 1))


def send(signum: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def ranks_of(step: Step, task: environment.Task) -> list[int]:
    """The ranks that a shim of this step answers for: one where each has its own, else its node's."""
    if step.launcher in ("worker", "srun"):
        return [task.rank if step.launcher == "srun" else environment.worker_rank()]
    first = task.node_rank * step.ranks_per_node
    return list(range(first, first + step.ranks_per_node))


def log_file(step: Step) -> Path:
    task = environment.task()
    if step.launcher in ("worker", "srun"):
        return step.logs / f"rank-{ranks_of(step, task)[0]:04d}.log"
    return step.logs / f"node-{task.node_rank:04d}.log"


def unpack(step: Step) -> int:
    try:
        return 0 if packed.unpack(Path(step.unpack), Path(step.environment)) else 1
    except (OSError, CalledProcessError) as error:
        print(f"outlast: {step.environment}: {error}", file=sys.stderr)
        return 1


def main(text: str) -> int:
    """The life of a shim; `text`: the step."""
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    below.call_me(below.SHIM)
    step = Step.load(text)
    if step.forget:
        node_memory.forget(step.run.path)
        return 0
    if step.unpack:
        redirect(log_file(step))
        return unpack(step)
    if step.environment:
        packed.use(Path(step.environment))
    shim = Shim(step)
    if preflight.is_due(step, shim.task) and not shim.fit():
        return UNFIT
    redirect(log_file(step))
    try:
        return shim.run()
    except SlurmError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return 1
