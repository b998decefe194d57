"""Bringing pockets up, and finding those that run."""

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

from envs.pocket import daemons, home, layout, network
from envs.pocket.cluster import Pocket
from envs.pocket.errors import PocketError
from envs.pocket.layout import Layout
from envs.pocket.roots import roots, trusted

PATH_LIMIT = 80
"""A socket's path has at most 107 characters; slurmstepd's in here are spool/node64/node64_<job>.<step>."""


def up(
    name: str = "pocket",
    nodes: int = 4,
    gpus: int = 4,
    *,
    namespaces: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Pocket:
    """A pocket of this shape, ready for jobs: the one that runs, or a fresh one.

    `namespaces`: None takes them where this machine allows them. `say` hears of a pocket that makes way.
    """
    check_name(name)
    _check_shape(nodes, gpus)
    root = roots()[0]
    folder = root / name
    _check_path(folder)
    with home.lock(root):
        old = _find_in(root, name)
        if old is not None and _same_shape(old, nodes, gpus, namespaces):
            return old
        if old is not None:
            _check_idle(old)
            say(f"pocket {name} starts afresh with {nodes} nodes x {gpus} GPUs (was: {_shape(old)})")
        home.clean(folder)
        try:
            return _bring_up(_claim(folder, nodes, gpus, namespaces))
        except BaseException:  # else what came up would be taken for a pocket
            home.stop(folder)
            raise


def find(name: str = "pocket") -> Pocket | None:
    """The running pocket of this name: one's own, else root's."""
    return next((pocket for root in roots() if (pocket := _find_in(root, name))), None)


def _find_in(root: Path, name: str) -> Pocket | None:
    plan = home.read(root / name) if trusted(root) and trusted(root / name) else None
    if plan is None or plan.folder != root / name or len(daemons.missing(plan)) == len(daemons.all_of(plan)):
        return None
    return Pocket(plan)


def check_name(name: str) -> None:
    """It becomes a folder that is removed."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise PocketError(f"pocket name {name!r}: up to 31 small letters, digits and hyphens, a letter first")


def _check_shape(nodes: int, gpus: int) -> None:
    if not 1 <= nodes <= layout.MAX_NODES:
        raise PocketError(f"a pocket has 1 to {layout.MAX_NODES} nodes, not {nodes}")
    if not 0 <= gpus <= layout.MAX_GPUS:
        raise PocketError(f"a node of a pocket has 0 to {layout.MAX_GPUS} GPUs, not {gpus}")


def _check_path(folder: Path) -> None:
    if len(str(folder)) > PATH_LIMIT:
        raise PocketError(f"{folder} is too long a path for sockets: set OUTLAST_POCKET_DIR to a shorter one")


def _same_shape(pocket: Pocket, nodes: int, gpus: int, namespaces: bool | None) -> bool:
    """Whether it is just what is asked for, and whole."""
    have = pocket.layout
    same = (have.nodes, have.gpus) == (nodes, gpus) and namespaces in (None, have.namespaces)
    return same and not daemons.missing(have)


def _check_idle(pocket: Pocket) -> None:
    """Refuses to throw away jobs. A pocket that does not answer is a leftover."""
    try:
        jobs = pocket.jobs()
    except PocketError:
        return
    if jobs:
        raise PocketError(
            f"pocket {pocket.name} ({_shape(pocket)}) cannot start afresh while it has {len(jobs)} jobs"
            f" ({', '.join(jobs[:5])}): wait for them, or end all with `pocket down --name {pocket.name}`"
        )


def _shape(pocket: Pocket) -> str:
    dead = [f"{name} dead" for name in daemons.missing(pocket.layout)]
    return ", ".join([f"{len(pocket.nodes)} nodes x {pocket.gpus} GPUs", *dead])


def _claim(folder: Path, nodes: int, gpus: int, namespaces: bool | None) -> Layout:
    if namespaces is None:
        namespaces = network.allowed()
    host = socket.gethostname().split(".")[0]
    return Layout(
        name=folder.name,
        nodes=nodes,
        gpus=gpus,
        folder=folder,
        index=network.claim_index(folder, 1 + nodes, namespaces),
        namespaces=namespaces,
        user=daemons.owner(),
        host=host,
        first_job=layout.first_job(time.time()),
    )


def _bring_up(plan: Layout) -> Pocket:
    """Each daemon starts when the one that it asks first is ready: nobody sleeps before a second try."""
    pocket = Pocket(plan)
    home.write(plan)
    if plan.namespaces:
        network.connect(plan)
    daemons.start(plan, "munged")
    pocket.wait_munged()
    pocket.start_controller()
    for node in pocket.nodes:
        daemons.start(plan, node)
    pocket.wait_ready()
    return pocket
