"""A running pocket: what to ask of it, and the faults to inject into it."""

import signal
from dataclasses import dataclass
from pathlib import Path

from envs.pocket import daemons, home, network, process
from envs.pocket.errors import PocketError
from envs.pocket.layout import Layout

READY_TIMEOUT_S = 60


@dataclass(frozen=True)
class NodeStatus:
    name: str
    address: str
    slurmd: bool
    """Whether its daemon runs."""
    state: str
    """Slurm's word: idle, mixed, allocated, down, ...; a `*` behind it: does not answer."""


@dataclass(frozen=True)
class Status:
    name: str
    folder: str
    gpus: int
    namespaces: bool
    munged: bool
    slurmctld: bool
    jobs: list[str]
    """Ids of jobs that wait or run."""
    nodes: list[NodeStatus]

    @property
    def healthy(self) -> bool:
        return self.munged and self.slurmctld and all(node.slurmd for node in self.nodes)


@dataclass(frozen=True)
class Pocket:
    layout: Layout

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def nodes(self) -> list[str]:
        return self.layout.node_names

    @property
    def gpus(self) -> int:
        return self.layout.gpus

    @property
    def folder(self) -> Path:
        return self.layout.folder

    @property
    def slurm_conf(self) -> Path:
        return self.layout.slurm_conf

    def env(self) -> dict[str, str]:
        """This process's environment, made to talk to the pocket."""
        return daemons.client_env(self.slurm_conf)

    def ask(self, *argv: str) -> str:
        """Output of a Slurm command, such as `pocket.ask("scontrol", "show", "job", "7")`."""
        return process.run(argv, env=self.env())

    def status(self) -> Status:
        missing = daemons.missing(self.layout)
        answers = not {"munged", "slurmctld"} & set(missing)
        states = self.node_states() if answers else {}
        return Status(
            name=self.name,
            folder=str(self.folder),
            gpus=self.gpus,
            namespaces=self.layout.namespaces,
            munged="munged" not in missing,
            slurmctld="slurmctld" not in missing,
            jobs=self.jobs() if answers else [],
            nodes=[
                NodeStatus(
                    name=node,
                    address=str(self.layout.address(node)),
                    slurmd=node not in missing,
                    state=states.get(node, "unknown"),
                )
                for node in self.nodes
            ],
        )

    def node_states(self) -> dict[str, str]:
        table = self.ask("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%N %T")
        return dict(line.split() for line in table.splitlines())

    def jobs(self) -> list[str]:
        """Ids of jobs that wait or run."""
        return self.ask("squeue", "--noheader", "--format=%i").split()

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Until every daemon runs and every node serves."""

        def ready() -> bool:
            for name in daemons.missing(self.layout):
                raise daemons.ended(self.layout, name)
            return set(self.node_states().values()) <= {"idle", "mixed", "allocated", "completing"}

        def failure() -> str:
            return f"nodes of pocket {self.name} are not ready: {self.node_states()}, logs in {self.folder}/log"

        process.wait_until(ready, failure, timeout_s)

    def down(self) -> None:
        home.down(self.folder)

    # Faults

    def stop_slurmd(self, node: str) -> None:
        """kill -9 of the node's slurmd; its slurmstepd and ranks live on."""
        argv = daemons.slurmd(self.layout, self._known(node))
        process.kill(lambda: _pids(argv))

    def start_slurmd(self, node: str) -> None:
        if process.find(daemons.slurmd(self.layout, self._known(node))) is None:
            daemons.start(self.layout, node)

    def cut_link(self, node: str) -> None:
        """Pulls the node's network cable: all on it live on, unseen."""
        network.set_link(self.layout, self._isolated(node, "cut_link"), up=False)

    def mend_link(self, node: str) -> None:
        network.set_link(self.layout, self._isolated(node, "mend_link"), up=True)

    def kill_node(self, node: str) -> None:
        """slurmd, slurmstepd and ranks die at once, as by a power cut; `start_slurmd` is the reboot."""
        namespace = self.layout.namespace(self._isolated(node, "kill_node"))
        process.kill(lambda: network.processes(namespace))

    def stop_controller(self, crash: bool = False) -> None:
        """Ends slurmctld; with `crash` by kill -9, which may lose what was submitted in the last seconds."""
        argv = daemons.slurmctld(self.layout)
        if crash:
            process.kill(lambda: _pids(argv))
            return
        for pid in _pids(argv):
            process.send(pid, signal.SIGTERM)
        process.wait_until(lambda: not _pids(argv), lambda: "slurmctld does not end on SIGTERM", 20)

    def start_controller(self) -> None:
        if not _pids(daemons.slurmctld(self.layout)):
            daemons.start(self.layout, "slurmctld")
        self.wait_controller()

    def wait_controller(self) -> None:
        """Until slurmctld listens; asked earlier, its clients sleep a whole second before they try again."""
        address = (str(self.layout.controller_address), self.layout.controller_port)
        self._wait_daemon("slurmctld", lambda: process.listens(address))

    def wait_munged(self) -> None:
        self._wait_daemon("munged", self.layout.munge_socket.exists)

    def _wait_daemon(self, name: str, ready: process.Check) -> None:
        argv = daemons.all_of(self.layout)[name]

        def alive_and_ready() -> bool:
            if not _pids(argv):
                raise daemons.ended(self.layout, name)
            return ready()

        process.wait_until(alive_and_ready, lambda: f"{name} is not ready: {daemons.last_words(self.layout, name)}", 20)

    def _known(self, node: str) -> str:
        if node not in self.nodes:
            raise PocketError(f"pocket {self.name} has no {node}: its nodes are {', '.join(self.nodes)}")
        return node

    def _isolated(self, node: str, fault: str) -> str:
        if not self.layout.namespaces:
            raise PocketError(
                f"{fault} needs a node with its own network, and pocket {self.name} has none: "
                "bring it up as root where network namespaces are allowed"
            )
        return self._known(node)


def _pids(argv: list[str]) -> list[int]:
    pid = process.find(argv)
    return [] if pid is None else [pid]
