"""What a pocket looks like: one dataclass, and from it the text of every file that Slurm reads."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

CPUS_PER_NODE = 64
"""More than the machine has (config_overrides): enough for 16 tasks with 4 CPUs each."""
MEMORY_MB_PER_NODE = 16000
KILL_WAIT_S = 5
"""SIGTERM to SIGKILL: long enough for a real emergency save, short enough for a test."""
GRACE_S = 10
"""Warning that a preempted job gets before its SIGTERM."""
NODE_TIMEOUT_S = 10
"""Silence after which a node counts as DOWN."""
CREDENTIAL_S = 5
"""A requeued job may start one second after its old credentials expire: 121 s on a stock Slurm, 6 s here."""

LOGIN = "login"
"""This machine, as the nodes call it."""
SWITCH = "switch"
"""What connects the login and the nodes."""

MAX_NODES = 64
MAX_GPUS = 64
INDEXES = range(64)
FIRST_PORT = 21000
PORTS_PER_POCKET = 100


@dataclass(frozen=True)
class Layout:
    """All that distinguishes one pocket from another; stored as pocket.json in its folder."""

    name: str
    nodes: int
    gpus: int
    """Fake GPUs on each node."""
    folder: Path
    index: int
    """Free number claimed at `up`: cable, namespaces, subnet and ports derive from it."""
    namespaces: bool
    """Each node with its own network, name and address; else all slurmd share this machine's."""
    user: str
    """Owner of the daemons; only root's can run the jobs of others."""
    host: str
    """Short hostname of this machine."""
    first_job: int
    """A fresh pocket must not hand out the job ids of an earlier one: run folders remember theirs."""

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    @property
    def hosts(self) -> Path:
        return self.folder / "hosts"

    @property
    def cable(self) -> str:
        """This machine's end of its cable to the nodes."""
        return f"olp{self.index}"

    @property
    def subnet(self) -> IPv4Network:
        return subnet(self.index)

    @property
    def controller(self) -> str:
        """Hostname that slurmctld sees; it refuses to start where SlurmctldHost names another."""
        return LOGIN if self.namespaces else self.host

    @property
    def controller_address(self) -> IPv4Address:
        return self.subnet[254] if self.namespaces else IPv4Address("127.0.0.1")

    @property
    def controller_port(self) -> int:
        return first_port(self.index)

    def number(self, node: str) -> int:
        return self.node_names.index(node) + 1

    def address(self, node: str) -> IPv4Address:
        return self.subnet[self.number(node)] if self.namespaces else self.controller_address

    def port(self, node: str) -> int:
        return self.controller_port + (1 if self.namespaces else self.number(node))

    def namespace(self, host: str) -> str:
        """Network namespace of a node, or of the switch."""
        return f"{self.cable}-{host}"

    def log(self, daemon: str) -> Path:
        """Log of "munged", "slurmctld" or a node's slurmd."""
        return self.folder / "log" / f"{daemon}.log"

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"folder": str(self.folder)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        facts = json.loads(text)
        return cls(**facts | {"folder": Path(facts["folder"])})


def subnet(index: int) -> IPv4Network:
    return IPv4Network(f"10.213.{index}.0/24")


def first_port(index: int) -> int:
    """Below 32768, so that no outgoing connection of this machine sits on it."""
    return FIRST_PORT + PORTS_PER_POCKET * index


def first_job(now: float) -> int:
    """A new id every second, below Slurm's highest (67,043,327)."""
    return int(now) % 60_000_000 + 1


def slurm_conf(layout: Layout) -> str:
    parts = _cluster(layout), _scheduling(layout), _nodes(layout), _partitions()
    return "\n".join("\n".join(part) + "\n" for part in parts)


def gres_conf(layout: Layout) -> str:
    return f"Name=gpu File={layout.folder}/gpu/[0-{layout.gpus - 1}]\n" if layout.gpus else ""


def mail_program(layout: Layout) -> str:
    """What Slurm mails is a line in a log: its subject, and to whom."""
    return f'#!/bin/sh\necho "$@" >> {shlex.quote(str(layout.log("mail")))}\n'


def cgroup_conf() -> str:
    """Nothing here uses cgroups, but slurmd loads a plugin at its start: v2 wants systemd, v1 does not."""
    return "CgroupPlugin=cgroup/v1\n"


def hosts(layout: Layout) -> str:
    """/etc/hosts of the nodes. A node's own name is not 127.0.1.1 there: that would break any rendezvous."""
    names = [f"{layout.address(node)} {node}" for node in layout.node_names]
    login = f"{layout.controller_address} {LOGIN} {layout.host}"
    return "\n".join(["127.0.0.1 localhost", login, *names, ""])


def _cluster(layout: Layout) -> Iterator[str]:
    folder = layout.folder
    yield f"ClusterName={layout.name}"
    yield f"SlurmctldHost={layout.controller}({layout.controller_address})"
    yield f"SlurmctldPort={layout.controller_port}"
    yield f"SlurmUser={layout.user}"
    yield f"SlurmdUser={layout.user}"
    yield "AuthType=auth/munge"
    yield f"AuthInfo=socket={layout.munge_socket},cred_expire={CREDENTIAL_S}"
    yield f"StateSaveLocation={folder}/state"
    yield f"SlurmctldPidFile={folder}/pid/slurmctld"
    yield f"SlurmdSpoolDir={folder}/spool/%n"
    yield f"SlurmdPidFile={folder}/pid/%n"
    yield f"SlurmctldLogFile={layout.log('slurmctld')}"
    yield f"SlurmdLogFile={folder}/log/%n.log"
    yield f"MailProg={folder}/mail"
    yield f"FirstJobId={layout.first_job}"
    if layout.namespaces:
        # Listen to the nodes only, not to the outside: slurmctld takes the address of its own name for that.
        yield "CommunicationParameters=NoCtldInAddrAny"
    # No cgroups, no task binding: the nodes claim more CPUs than the machine has.
    yield "ProctrackType=proctrack/linuxproc"
    yield "TaskPlugin=task/none"
    yield "SlurmdParameters=config_overrides"
    yield "MpiDefault=none"
    yield "JobAcctGatherType=jobacct_gather/none"
    yield "AccountingStorageType=accounting_storage/none"


def _scheduling(layout: Layout) -> Iterator[str]:
    yield "SelectType=select/cons_tres"
    # Memory is not a consumable: several jobs share a node though none of them says --mem.
    yield "SelectTypeParameters=CR_CPU"
    yield "GresTypes=gpu"
    yield "SchedulerType=sched/backfill"
    yield "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0"
    yield "PreemptType=preempt/partition_prio"
    yield "PreemptMode=REQUEUE"
    yield "JobRequeue=1"
    yield "ReturnToService=2"
    yield "OverTimeLimit=0"
    yield "InactiveLimit=0"
    yield f"KillWait={KILL_WAIT_S}"
    yield f"SlurmdTimeout={NODE_TIMEOUT_S}"
    yield "MessageTimeout=5"
    # Ranks that import torch keep two cores busy for a minute: a slow start is no failed start.
    yield "BatchStartTimeout=60"
    # A successor asks what became of its predecessor: keep the dead for 5 minutes.
    yield "MinJobAge=300"


def _nodes(layout: Layout) -> Iterator[str]:
    gres = f" Gres=gpu:{layout.gpus}" if layout.gpus else ""
    for node in layout.node_names:
        hostname = node if layout.namespaces else layout.host
        yield (
            f"NodeName={node} NodeHostname={hostname}"
            f" NodeAddr={layout.address(node)} Port={layout.port(node)}"
            f" CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MB_PER_NODE}{gres} State=UNKNOWN"
        )


def _partitions() -> Iterator[str]:
    """All over all nodes. Only `urgent` stands above the others, so only its jobs preempt."""
    common = "Nodes=ALL MaxTime=1-00:00:00 DefaultTime=30"
    yield f"PartitionName=batch {common} Default=YES PriorityTier=1 PreemptMode=OFF"
    yield f"PartitionName=preempt {common} PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_S}"
    yield f"PartitionName=nograce {common} PriorityTier=1 PreemptMode=REQUEUE GraceTime=0"
    yield f"PartitionName=cancel {common} PriorityTier=1 PreemptMode=CANCEL GraceTime={GRACE_S}"
    yield f"PartitionName=urgent {common} PriorityTier=10 PreemptMode=OFF"
