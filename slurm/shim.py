"""What every launcher starts: a small process above the ranks of its task.

It gives them their environment, passes signals on, and writes each one's real end to `rank-0005.exit`, since launchers
blur it (srun returns 137 where a rank left with 75 first; torchrun returns 1 for everything). Itself it leaves with 0
when its ranks ended as agreed, so that srun sees a failure only where one is. Standard library only: 10 MB a rank.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from durable import write_atomic
from slurm import environment, rendezvous
from slurm.errors import SlurmError
from slurm.forked import become, open_log, preload, python_module, redirect, run_module
from slurm.step import Step, read_exits, shim_argv

STOP_SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})
WAITED = STOP_SIGNALS | {signal.SIGCHLD}
AGREED = (0, 75, 76, 77)  # done, continue me, fenced, ended by the user's word
CONFIG = 78
RENDEZVOUS_SECONDS = 600.0
TICK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """A rank's process; `rank` is None for torchrun's agent, which is no rank."""

    rank: int | None
    pid: int
    code: int | None = None


class Shim:
    def __init__(self, step: Step) -> None:
        self.step = step
        self.task = environment.task()
        self.parent = os.getppid()
        self.libc = ctypes.CDLL(None)  # loaded before any fork
        self.children: list[Child] = []
        self.told_foreign = False

    def run(self) -> int:
        """Start the ranks, stay until they ended; 0 when they ended as agreed."""
        if self.step.launcher == "worker":  # torchrun has given it everything
            self.spawn(self.step.argv, {}, environment.worker_rank())
            self.watch()
            return self.verdict()
        meeting, held = self.meet()
        match self.step.launcher:
            case "srun":
                self.spawn(self.step.argv, self.rank_variables(meeting, self.task.local_rank), self.task.rank)
            case "torchrun":
                self.spawn(self.torchrun_argv(meeting), self.node_variables(meeting), None)
            case "fork":
                self.fork_ranks(meeting)
            case "spawn":
                for local_rank in range(self.step.ranks_per_node):
                    self.spawn(self.step.argv, self.rank_variables(meeting, local_rank), local_rank)
        self.watch()
        if held is not None:
            held.close()
        return self.verdict()

    # --- before the start ---

    def meet(self) -> tuple[rendezvous.Rendezvous, socket.socket | None]:
        """The rendezvous: the first rank's shim chooses it, and holds its port; the others wait for it."""
        file = self.step.logs / "rendezvous.json"
        if self.task.node_rank == 0 and self.task.local_rank == 0:
            seed = f"{self.step.run_dir} {self.step.epoch}"
            return rendezvous.publish(file, self.task.host, self.task.launch_address, self.step.nodes, seed)
        return rendezvous.wait(file, RENDEZVOUS_SECONDS, lambda: not self.told_to_end()), None

    def told_to_end(self) -> bool:
        return signal.SIGTERM in signal.sigpending() and self.peer_crashed()

    def node_variables(self, meeting: rendezvous.Rendezvous) -> dict[str, str]:
        """What the ranks of this node share."""
        step = self.step
        out = environment.attempt_variables(step.run.path, step.epoch, step.deadline, step.logs / "hostfile")
        # Without it every rank starts a thread for every core of its node.
        ranks = (
            1 if step.launcher == "srun" else step.ranks_per_node
        )  # a task of the other launchers holds a node's ranks
        out["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, (self.task.cpus or 1) // ranks))
        interface = rendezvous.gloo_interface(self.task.host, meeting.master_addr) if step.nodes > 1 else None
        if interface and "GLOO_SOCKET_IFNAME" not in os.environ:
            out["GLOO_SOCKET_IFNAME"] = interface
        return out

    def rank_variables(self, meeting: rendezvous.Rendezvous, local_rank: int) -> dict[str, str]:
        names = environment.rank_variables(
            self.step.layout, self.task.node_rank, local_rank, meeting.master_addr, meeting.master_port
        )
        return self.node_variables(meeting) | names

    def python_path(self) -> dict[str, str]:
        """The user's own PYTHONPATH for a foreign command: our code's folder is not its business."""
        if not self.step.foreign:
            return {}
        return {"PYTHONPATH": environment.without_path(os.environ, self.step.run.path / "code")["PYTHONPATH"]}

    # --- starting ---

    def spawn(self, argv: tuple[str, ...] | list[str], variables: dict[str, str], rank: int | None) -> None:
        log = None
        if rank is not None:
            variables, log = variables | self.python_path(), open_log(self.step.logs / f"rank-{rank:04d}.log")
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
            self.write_exit(rank, CONFIG)
            raise SystemExit(CONFIG) from None
        finally:
            if log is not None:
                os.close(log)
        self.children.append(Child(rank, process.pid))
        process.returncode = 0  # reaped here, not by subprocess

    def in_child(self, rank: int | None) -> None:
        """Between fork and exec: the trainer starts with stop signals blocked, so that one that comes before its
        handlers stand waits instead of killing it. Everything else gets the defaults."""
        self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a shim killed by -9 takes its rank along
        ours = rank is not None and not self.step.foreign
        signal.pthread_sigmask(signal.SIG_SETMASK, STOP_SIGNALS if ours else ())

    def torchrun_argv(self, meeting: rendezvous.Rendezvous) -> list[str]:
        """One agent a node; its workers are shims again, since it hides how a rank ended."""
        worker = replace(self.step, launcher="worker")
        signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"  # it dies of those that it is not told to pass on
        return [
            *(sys.executable, "-P", "-m", "torch.distributed.run"),
            *(f"--nnodes={self.step.nodes}", f"--nproc-per-node={self.step.ranks_per_node}"),
            *(f"--node-rank={self.task.node_rank}", "--max-restarts=0", f"--signals-to-handle={signals}"),
            # It kills workers this long after it passed a signal on: a save must fit.
            "--shutdown-timeout=86400",
            *(f"--master-addr={meeting.master_addr}", f"--master-port={meeting.master_port}"),
            *("--no-python", *shim_argv(worker)),
        ]

    def fork_ranks(self, meeting: rendezvous.Rendezvous) -> None:
        """Import once, then one fork a rank, before any thread or device is started."""
        module, args = python_module(self.step.argv)
        os.environ.update(self.node_variables(meeting))  # OpenMP reads its number of threads once, at the import
        preload(module)
        gc.freeze()  # a collection in a child would copy every page that it shares
        for local_rank in range(self.step.ranks_per_node):
            variables = self.rank_variables(meeting, local_rank) | self.python_path()
            rank = int(variables["RANK"])
            pid = os.fork()
            if pid == 0:
                self.in_child(rank)
                become(lambda: run_module(module, args), variables, self.step.logs / f"rank-{rank:04d}.log")
            self.children.append(Child(rank, pid))

    # --- until the end ---

    def watch(self) -> None:
        while any(child.code is None for child in self.children):
            info = signal.sigtimedwait(WAITED, TICK_SECONDS)
            self.reap()
            if info is None:
                self.tick()
            elif info.si_signo in STOP_SIGNALS:
                self.pass_on(info.si_signo)

    def reap(self) -> None:
        for child in self.alive():
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.code = os.waitstatus_to_exitcode(status)
                self.record(child)

    def record(self, child: Child) -> None:
        """The file stands before this process leaves: whoever hears of the crash can read of it."""
        code = child.code
        assert code is not None
        self.write_exit(child.rank, code)
        if code not in AGREED:
            self.kill()  # this node's other ranks cannot go on without it

    def write_exit(self, rank: int | None, code: int) -> None:
        """The rank's record, for the supervisor and for the other shims; torchrun's agent has none."""
        if rank is not None:
            end = {"rank": rank, "code": code if code >= 0 else None, "signal": -code if code < 0 else None}
            write_atomic(self.step.exit_file(rank), json.dumps({**end, "host": self.task.host, "time": time.time()}))

    def tick(self) -> None:
        if os.getppid() != self.parent:  # our launcher was killed: nobody would end these ranks
            self.kill()
        stop_asked = self.step.run.stop_file.exists() or self.step.run.stop_word(self.step.epoch).exists()
        if self.step.foreign and stop_asked and not self.told_foreign and self.step.launcher != "torchrun":
            self.told_foreign = True
            self.pass_on(signal.SIGTERM)

    def pass_on(self, signum: int) -> None:
        if signum == signal.SIGTERM and self.peer_crashed():
            self.kill()  # nothing can be saved together any more
        for child in self.alive():
            with suppress(ProcessLookupError):
                os.kill(child.pid, signum)

    def peer_crashed(self) -> bool:
        return any(end.get("code") not in AGREED for end in read_exits(self.step.logs).values())

    def kill(self) -> None:
        for child in self.alive():
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)

    def alive(self) -> list[Child]:
        return [child for child in self.children if child.code is None]

    def verdict(self) -> int:
        """0 when all ended as agreed, else the first failure; torchrun's agent is judged by its ranks' files."""
        codes = [child.code or 0 for child in self.children]
        if self.step.launcher == "torchrun":
            first = self.task.node_rank * self.step.ranks_per_node
            exits = read_exits(self.step.logs)
            mine = [exits.get(first + i, {}).get("code", 1) for i in range(self.step.ranks_per_node)]
            codes = [1 if code is None else code for code in mine]
        bad = next((code for code in codes if code not in AGREED), 0)
        return bad if bad >= 0 else 128 - bad


def log_file(step: Step) -> Path:
    task = environment.task()
    if step.launcher in ("torchrun", "fork", "spawn"):
        return step.logs / f"node-{task.node_rank:04d}.log"
    rank = environment.worker_rank() if step.launcher == "worker" else task.rank
    return step.logs / f"rank-{rank:04d}.log"


def main() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    step = Step.load(sys.argv[1])
    redirect(log_file(step))
    try:
        return Shim(step).run()
    except SlurmError as error:
        print(f"outlast: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
