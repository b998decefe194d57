"""The folder of a pocket: where it lies, what is in it, and how all that belongs to it goes away."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.pocket import daemons, layout, network, process
from envs.pocket.errors import PocketError
from envs.pocket.layout import Layout
from envs.pocket.roots import RECORD


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time: two would claim the same index. All may read what it writes."""
    umask = os.umask(0o022)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if root.is_symlink() or root.stat().st_uid != os.getuid():
            raise PocketError(f"{root} belongs to another user: set OUTLAST_POCKET_DIR to a folder of your own")
        with (root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    finally:
        os.umask(umask)


def read(folder: Path) -> Layout | None:
    try:
        return Layout.from_json((folder / RECORD).read_text())
    except (OSError, ValueError, TypeError):  # none, torn, or of another version: a leftover
        return None


def write(plan: Layout) -> None:
    folder = plan.folder
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
    (folder / "mail").write_text(layout.mail_program(plan))
    (folder / "mail").chmod(0o755)
    (folder / RECORD).write_text(plan.to_json())


def stop(folder: Path) -> None:
    """Processes, then network: found by the folder's path, so half a folder or none is enough."""
    cables, namespaces = network.leftovers(folder)
    process.kill(lambda: daemons.processes(folder, namespaces))
    if cables:
        network.remove(cables, namespaces)


def clean(folder: Path) -> None:
    """And then files."""
    stop(folder)
    if folder.exists():
        shutil.rmtree(folder)


def down(folder: Path) -> None:
    """Ends and removes all that belongs to the pocket in this folder."""
    with lock(folder.parent):
        clean(folder)


def _write_secret(path: Path, secret: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
        file.write(secret)
