"""Bringing pockets up and down, and finding those that run."""

import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.pocket import daemons, layout, network, process
from envs.pocket.cluster import Pocket
from envs.pocket.errors import PocketError
from envs.pocket.layout import Layout

SYSTEM_ROOT = Path("/run/outlast-pocket")
RECORD = "pocket.json"
SOCKET_PATH_LIMIT = 107


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
    _check_shape(name, nodes, gpus)
    root = _own_root()
    folder = root / name
    with _lock(root):
        old = find(name) if (folder / RECORD).exists() else None
        if old is not None and _same_shape(old, nodes, gpus, namespaces):
            return old
        if old is not None:
            _check_idle(old)
            say(f"pocket {name}: {_shape(old)} makes way for {nodes} nodes x {gpus} GPUs")
        _clean(folder)
        return _bring_up(_claim(folder, nodes, gpus, namespaces))


def find(name: str = "pocket") -> Pocket | None:
    """The running pocket of this name: one's own, else root's."""
    for root in _roots():
        try:
            record = (root / name / RECORD).read_text()
        except OSError:
            continue
        pocket = Pocket(Layout.from_json(record))
        if len(daemons.missing(pocket.layout)) < len(daemons.all_of(pocket.layout)):
            return pocket
    return None


def down(folder: Path) -> None:
    """Ends and removes all that belongs to the pocket in this folder."""
    with _lock(folder.parent):
        _clean(folder)


def own_folder(name: str) -> Path:
    return _roots()[0] / name


def _check_shape(name: str, nodes: int, gpus: int) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise PocketError(f"pocket name {name!r}: up to 31 small letters, digits and hyphens, a letter first")
    if not 1 <= nodes <= layout.MAX_NODES:
        raise PocketError(f"a pocket has 1 to {layout.MAX_NODES} nodes, not {nodes}")
    if not 0 <= gpus <= layout.MAX_GPUS:
        raise PocketError(f"a node of a pocket has 0 to {layout.MAX_GPUS} GPUs, not {gpus}")


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
            f"pocket {pocket.name} runs as {_shape(pocket)} and has {len(jobs)} jobs"
            f" ({', '.join(jobs[:5])}): wait for them, or end all with `pocket down --name {pocket.name}`"
        )


def _shape(pocket: Pocket) -> str:
    return f"{len(pocket.nodes)} nodes x {pocket.gpus} GPUs"


def _roots() -> list[Path]:
    """Where pockets lie; one's own comes first."""
    if chosen := os.environ.get("OUTLAST_POCKET_DIR"):
        return [Path(chosen).resolve()]
    if os.getuid() == 0:
        return [SYSTEM_ROOT]
    return [Path(f"/tmp/outlast-pocket-{os.getuid()}"), SYSTEM_ROOT]


def _own_root() -> Path:
    root = _roots()[0]
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise PocketError(f"{root} belongs to another user: set OUTLAST_POCKET_DIR to a folder of your own")
    return root


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time: two would claim the same index."""
    with (root / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    _write_folder(plan)
    if plan.namespaces:
        network.connect(plan)
    daemons.start(plan, "munged")
    pocket.wait_munged()
    pocket.start_controller()
    for node in pocket.nodes:
        daemons.start(plan, node)
    pocket.wait_ready()
    return pocket


def _write_folder(plan: Layout) -> None:
    folder = plan.folder
    if len(str(plan.munge_socket)) > SOCKET_PATH_LIMIT:
        raise PocketError(
            f"{plan.munge_socket} is too long for a socket: set OUTLAST_POCKET_DIR to a shorter one"
        )
    for part in ("log", "munge", "pid", "state", "gpu"):
        (folder / part).mkdir(parents=True)
    for node in plan.node_names:
        (folder / "spool" / node).mkdir(parents=True)
    for number in range(plan.gpus):
        # Plain files would count as GPUs too, but CUDA_VISIBLE_DEVICES is set in jobs for devices only.
        (folder / "gpu" / str(number)).symlink_to("/dev/null")
    _write_secret(folder / "munge" / "key", secrets.token_bytes(128))
    plan.slurm_conf.write_text(layout.slurm_conf(plan))
    plan.hosts.write_text(layout.hosts(plan))
    (folder / "gres.conf").write_text(layout.gres_conf(plan))
    (folder / "cgroup.conf").write_text(layout.cgroup_conf())
    (folder / RECORD).write_text(plan.to_json())


def _write_secret(path: Path, secret: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        file.write(secret)


def _clean(folder: Path) -> None:
    """Processes, then network, then files: found by the folder's path, so half a folder or none is enough."""
    bridges, namespaces = network.leftovers(folder)
    process.kill(lambda: daemons.processes(folder, namespaces))
    if bridges:
        network.remove(bridges, namespaces)
    if folder.exists():
        shutil.rmtree(folder)
