"""Checks of the nodes, by what became of the doctor's job."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from slurm.doctor.exam import SIGNAL, Exam
from slurm.doctor.finding import Finding, error, ok, warning

SKEW, LONG_SKEW = 2.0, 60.0  # seconds
LITTLE_SCRATCH = 5.0  # GB
SLOW = {"nccl": 1.0, "gloo": 0.01}
"""GB/s below which the ranks go by a network that is not meant for them."""


_TELLING = re.compile(r"error|no such file|denied|cannot|not found", re.IGNORECASE)


def started(exam: Exam) -> Iterator[Finding]:
    """Every rank ran, and reached its peers."""
    ready = [one for one in exam.reports if one.get("ready")]
    if len(ready) == exam.job.world_size:
        yield ok("ranks", f"{exam.job.layout} ran, and could write to {exam.run.path.parent}")
        return
    failed = [f"{one['host']}: {one['error']}" for one in exam.reports if "error" in one]
    reason = "; ".join([*failed, *filter(None, [str(exam.record.get("reason", ""))])][:3])
    telling = [line for line in exam.words if _TELLING.search(line) and "Exited with exit code" not in line]
    said = " | ".join([*filter(None, [reason]), *telling[:2]]) or "the job has ended without a word"
    what = f"{len(ready)} of {exam.job.world_size} ranks came up: {said}"
    yield error("ranks", what, "a training would end in the same way", f"mend what it names; more in {exam.run.logs}")


def unfit(exam: Exam) -> Iterator[Finding]:
    if exam.record.get("unfit"):
        node = exam.record["failed_on"]
        mend = f"tell the site; until then --exclude {node}"
        yield error("node", str(exam.record["reason"]), "every attempt there ends at its start", mend)


def gpus(exam: Exam) -> Iterator[Finding]:
    """As many as asked for, each one of its own, none with errors, one driver everywhere."""
    wanted = exam.job.gpus_per_node
    found = {host: reports[0]["gpus"] for host, reports in _by_host(exam).items() if "gpus" in reports[0]}
    listed = {host: told["listed"] for host, told in found.items() if "listed" in told}
    for host, told in found.items():
        if "error" in told:
            yield warning("GPUs", f"{host}: nvidia-smi: {told['error']}", "the driver is not well", _exclude(host))
    for host, cards in listed.items():
        if len(cards) < wanted:
            yield error("GPUs", f"{host} shows {len(cards)} of {wanted} GPUs", "some ranks find none", _exclude(host))
        for card in (card for card in cards if card["ecc"]):
            what = f"{host}: {card['uuid']} has {card['ecc']} uncorrected memory errors"
            yield error("GPUs", what, "what it computes may be wrong, and it fails soon", _exclude(host))
    yield from _same_gpu(exam, listed)
    yield from _drivers(listed)
    if not listed:
        why = {told.get("none") or "nvidia-smi fails" for told in found.values()}
        yield ok("GPUs", f"not looked at: {', '.join(sorted(why)) or 'no rank has reported'}")


def _same_gpu(exam: Exam, listed: dict[str, list[dict[str, Any]]]) -> Iterator[Finding]:
    """Twice the same, by the ranks' own devices and by the drivers' lists."""
    of_ranks = Counter(one["uuid"] for one in exam.reports if one.get("uuid"))
    of_nodes = Counter(card["uuid"] for cards in listed.values() for card in cards)
    twice = [uuid for uuid, count in (of_ranks + Counter()).items() if count > 1]
    twice += [uuid for uuid, count in of_nodes.items() if count > 1 and uuid not in twice]
    for uuid in twice:
        hosts = sorted({host for host, cards in listed.items() if any(card["uuid"] == uuid for card in cards)})
        where = f" ({', '.join(hosts)})" if hosts else ""
        why = "two ranks on one GPU hang or run out of memory"
        mend = "look at --gpus, CUDA_VISIBLE_DEVICES and the site's GPU binding; `nvidia-smi -L` on each node"
        yield error("GPUs", f"{uuid} is there twice{where}", why, mend)
    if listed and not twice:
        yield ok("GPUs", f"{sum(of_nodes.values())} of {exam.job.nodes} nodes, all different")


def _drivers(listed: dict[str, list[dict[str, Any]]]) -> Iterator[Finding]:
    drivers = {host: cards[0]["driver"] for host, cards in listed.items() if cards}
    if len(set(drivers.values())) > 1:
        said = ", ".join(f"{host} {driver}" for host, driver in drivers.items())
        common = Counter(drivers.values()).most_common(1)[0][0]
        odd = ",".join(host for host, driver in drivers.items() if driver != common)
        yield warning("GPUs", f"drivers differ: {said}", "NCCL may fail between them", _exclude(odd))


def torch(exam: Exam) -> Iterator[Finding]:
    """The same Python and torch everywhere; GPUs where the nodes have some."""
    seen = {one["host"]: f"Python {one['python']}, torch {one['torch']}" for one in exam.reports if "torch" in one}
    if len(set(seen.values())) > 1:
        said = ", ".join(f"{host}: {what}" for host, what in seen.items())
        yield warning(
            "software", said, "ranks of two versions cannot work together", "make the environment anew, once for all"
        )
    blind = [one["host"] for one in exam.reports if one.get("devices") == 0 and one["gpus"].get("listed")]
    if blind:
        what = f"{blind[0]}: nvidia-smi shows GPUs, torch none"
        yield error(
            "software", what, "the ranks would compute on the CPU", "install torch for this driver; `nvidia-smi`"
        )
    if seen and not blind and len(set(seen.values())) == 1:
        yield ok("software", f"{next(iter(seen.values()))} on every node")


def all_reduce(exam: Exam) -> Iterator[Finding]:
    done = [one for one in exam.reports if "gb_per_s" in one]
    if not done:
        return
    backend, slowest = done[0]["backend"], min(one["gb_per_s"] for one in done)
    said = f"{backend}: {slowest:g} GB/s for each of {len(done)} ranks"
    mend = "name the fast interface: NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME; look at `ip -br addr` on a node"
    if not all(one["sum_is_right"] for one in done):
        yield error("all-reduce", f"{backend}: the sum is wrong", "every gradient would be", "tell the site")
    elif exam.job.nodes > 1 and slowest < SLOW[backend]:
        yield warning("all-reduce", f"{said}: slow", "each step waits for it", mend)
    else:
        yield ok("all-reduce", f"the sum is right; {said}")


def clocks(exam: Exam) -> Iterator[Finding]:
    """Read when all ranks left one barrier."""
    times = {one["host"]: one["clock"] for one in exam.reports if "clock" in one}
    if not times:
        return
    middle = sorted(times.values())[(len(times) - 1) // 2]
    apart = max(times.values()) - min(times.values())
    if apart <= SKEW:
        yield ok("clocks", f"{apart:.2f} s apart at most")
        return
    worst = max(times, key=lambda host: abs(times[host] - middle))
    told = error if apart > LONG_SKEW else warning
    what = f"{apart:.1f} s between the nodes; the farthest from the others: {worst} ({times[worst] - middle:+.1f} s)"
    yield told(
        "clocks", what, "such a node sees the deadline too early or too late", f"{_exclude(worst)}; `chronyc tracking`"
    )


def addresses(exam: Exam) -> Iterator[Finding]:
    """A node's name leads the others to it."""
    wrong = 0
    for host, reports in _by_host(exam).items():
        if "addresses" not in reports[0]:
            continue
        found = reports[0]["addresses"]
        if not found or all(ip_address(one).is_loopback for one in found):
            wrong += 1
            said = f"only {', '.join(found)}" if found else "no address"
            what = f"{host} finds {said} for its own name"
            why = "a program that tells its peers this name makes them wait for ever (our own rendezvous does not)"
            yield warning(
                "addresses", what, why, f"tell the site: /etc/hosts of {host}; for gloo: export GLOO_SOCKET_IFNAME=..."
            )
    if not wrong and exam.reports:
        yield ok("addresses", "every node's name leads to it")


def scratch(exam: Exam) -> Iterator[Finding]:
    """The node's folder for temporary files."""
    wrong = 0
    for host, reports in _by_host(exam).items():
        told = reports[0].get("scratch", {})
        why = "compilers' caches and data workers write there"
        mend = "set TMPDIR to a folder of the node's own disk: job.environment.TMPDIR=..."
        if "error" in told:
            wrong += 1
            yield error("scratch", f"{host}: {told['folder']}: {told['error']}", why, mend)
        elif told.get("free_gb", LITTLE_SCRATCH) < LITTLE_SCRATCH:
            wrong += 1
            yield warning("scratch", f"{host}: {told['folder']} has {told['free_gb']} GB left", why, mend)
    if not wrong and exam.reports:
        free = min(one["scratch"]["free_gb"] for one in exam.reports if "scratch" in one)
        yield ok("scratch", f"every node takes temporary files, {free:,.0f} GB are free")


def signals(exam: Exam) -> Iterator[Finding]:
    if not exam.signalled:
        return
    deaf = [one for one in exam.reports if not one["heard"]]
    if not deaf:
        yield ok("signals", f"{SIGNAL} from Slurm has reached all {len(exam.reports)} ranks")
        return
    hosts = ", ".join(sorted({one["host"] for one in deaf}))
    what = f"{len(deaf)} of {len(exam.reports)} ranks have not heard {SIGNAL} ({hosts})"
    why = "they would not save before a preemption; the time limit they know by the clock"
    yield error(
        "signals", what, why, "see what stands between Slurm and Python: a wrapper, a container, a blocked signal"
    )


def requeue(exam: Exam) -> Iterator[Finding]:
    why = "after a node's failure Slurm does not start the job again, and --continue-by requeue cannot work"
    if exam.requeue_allowed is False:
        yield warning(
            "requeue", "the job was sent with --requeue, and Slurm has it as Requeue=0", why, "--continue-by chain"
        )
    elif exam.requeued is False:
        said = exam.refused or "its ranks have not come again"
        yield warning("requeue", f"scontrol requeue: {said}", why, "--continue-by chain")
    elif exam.requeued:
        yield ok("requeue", "the job was requeued, and its ranks came again")


def _by_host(exam: Exam) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in exam.reports:
        found.setdefault(one["host"], []).append(one)
    return found


def _exclude(hosts: str) -> str:
    return f"tell the site; until then --exclude {hosts}"


NODES: list[Callable[[Exam], Iterable[Finding]]] = [
    *(started, unfit, gpus, torch, all_reduce, clocks, addresses, scratch, signals, requeue),
]
