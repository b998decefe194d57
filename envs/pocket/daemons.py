"""munged, slurmctld and the slurmds of one pocket: how to start them, and how to find them again."""

import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path

from envs.pocket import network, process
from envs.pocket.errors import PocketError
from envs.pocket.layout import Layout

NAMES = {"munged", "slurmctld", "slurmd"}


def munged(layout: Layout) -> list[str]:
    folder = layout.folder / "munge"
    return [
        "munged",
        f"--socket={layout.munge_socket}",
        f"--key-file={folder}/key",
        f"--pid-file={folder}/pid",
        f"--seed-file={folder}/seed",
        f"--log-file={layout.log('munged')}",
    ]


def slurmctld(layout: Layout) -> list[str]:
    return ["slurmctld", "-f", str(layout.slurm_conf)]


def slurmd(layout: Layout, node: str) -> list[str]:
    return ["slurmd", "-N", node, "-f", str(layout.slurm_conf)]


def all_of(layout: Layout) -> dict[str, list[str]]:
    """Command line by name; a slurmd goes by its node's name."""
    return {
        "munged": munged(layout),
        "slurmctld": slurmctld(layout),
        **{node: slurmd(layout, node) for node in layout.node_names},
    }


def start(layout: Layout, name: str) -> None:
    """The daemons leave the caller's session and pipes by themselves: they fork, and the parent ends.

    So nobody has to wait for them, and a failure at the start arrives as the parent's code and message.
    """
    host = layout.controller if name == "slurmctld" else name
    wrapper = network.inside(layout, host) if layout.namespaces and name != "munged" else []
    # A bare environment: an outer job's SLURM_* would steer these daemons, and secrets do not belong in them.
    env = {"PATH": process.SBIN, "SLURM_CONF": str(layout.slurm_conf)}
    program, *options = all_of(layout)[name]
    argv = process.with_limits([*wrapper, process.program(program), *options])
    process.run(argv, env=env, called=f"start of {name} in pocket {layout.name}")


def ended(layout: Layout, name: str) -> PocketError:
    return PocketError(f"{name} of pocket {layout.name} ended: {last_words(layout, name)}")


def missing(layout: Layout) -> list[str]:
    """Names of the daemons that do not run."""
    table = process.command_lines()
    return [name for name, argv in all_of(layout).items() if process.find(argv, table) is None]


def last_words(layout: Layout, name: str) -> str:
    """The last line of a daemon's log, and where the rest is."""
    log = layout.log(name)
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    words = next((line for line in reversed(lines) if line.strip()), "no message")
    return f'"{words.strip()}" (log: {log})'


def processes(folder: Path, namespaces: list[str]) -> Iterator[int]:
    """Every process of the pocket in this folder, whatever is left of the folder itself."""
    for pid, argv in process.command_lines().items():
        name = Path(argv[0]).name
        if (name in NAMES and any(f"{folder}/" in word for word in argv)) or _started_by_slurmd(pid, folder):
            yield pid
    for namespace in namespaces:
        yield from network.processes(namespace)


def _started_by_slurmd(pid: int, folder: Path) -> bool:
    """A slurmstepd or a rank. A user's shell may have SLURM_CONF too, but not slurmd's SLURMD_NODENAME."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        stepd = Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd"
    except OSError:  # it ended, or is another user's
        return False
    ours = f"SLURM_CONF={folder}/slurm.conf".encode() in words
    return ours and (stepd or any(word.startswith(b"SLURMD_NODENAME=") for word in words))


def client_env(slurm_conf: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`base` without what an outer job left in it, and with the pocket's SLURM_CONF."""
    outer = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_")
    kept = {name: value for name, value in base.items() if not name.startswith(outer)}
    return kept | {"SLURM_CONF": str(slurm_conf)}


def owner() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
