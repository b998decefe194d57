"""Ranks in a root file system of their own, with a Python of its own and no Slurm, as in a container."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.drill.watch import events, history
from envs.pocket import Pocket
from slurm.rundir import RunDir
from tests.cluster.conftest import Launch, causes, job_log, job_of, over
from tests.cluster.training import reaches, write_recipe

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may change its root")

PYTHON = "/opt/env/bin/python"
# enter.sh ROOT FIXED BINDS COMMAND...: COMMAND in another root, with folders of the host (host:there,...) in it.
ENTER = """\
set -e
[ "$1" = inside ] || exec unshare --mount --propagation private sh "$0" inside "$@"
root=$2 binds=$3,$4
shift 4
for bind in $(echo "$binds" | tr , ' '); do
    mkdir -p "$root${bind#*:}"
    mount --rbind "${bind%%:*}" "$root${bind#*:}"
done
exec chroot "$root" "$@"
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A root with this Python under another name, but no program beside it; libraries are to be bound."""
    root = tmp_path / "root"
    for folder in ("opt/python/bin", "opt/python/lib", "opt/env/bin", "tmp", "usr/lib", "usr/lib64", "proc", "dev"):
        (root / folder).mkdir(parents=True)
    for folder in ("etc", "sys", "home", "root", "bin"):  # where Charliecloud puts its own
        (root / folder).mkdir()
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (root / "etc" / name).touch()
    shutil.copy2(os.path.realpath(sys.executable), root / "opt/python/bin/python3")
    (root / "opt/env/bin/python").symlink_to("/opt/python/bin/python3")
    (root / "opt/env/pyvenv.cfg").write_text("home = /opt/python/bin\n")
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    return root


def libraries() -> list[str]:
    """host:there. The Python may name its own shared library by its folder here; its programs are not in there."""
    base, library = f"{sys.base_prefix}/lib", f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    same = [f"{path}:{path}" for path in ("/usr/lib", "/usr/lib64", base)]
    site = f"{sysconfig.get_path('purelib')}:/opt/env/{library}/site-packages"
    return [*same, f"{base}:/opt/python/lib", site]


@pytest.fixture
def rank_command(tmp_path: Path, image: Path) -> list[str]:
    """Words for launch.py."""
    fixed = [*libraries(), *(f"{path}:{path}" for path in ("/etc", "/proc", "/dev"))]
    (tmp_path / "enter.sh").write_text(ENTER)
    words = ["sh", str(tmp_path / "enter.sh"), str(image), ",".join(fixed), "{binds}"]
    return [f"job.rank_command={json.dumps(words)}", f"job.rank_python={PYTHON}"]


@pytest.fixture
def outside_tmp() -> Iterator[Path]:
    """Charliecloud brings the host's /tmp along: what lies elsewhere is seen only if it is bound."""
    with tempfile.TemporaryDirectory(prefix="outlast-", dir="/var/tmp") as folder:
        yield Path(folder)


PROGRAM = """
import os, shutil, signal, sys, time
assert sys.executable == "/opt/env/bin/python", sys.executable
hosts = [name for name in sys.argv[1:] if shutil.which(name)]
assert len(sys.argv) == 5 and not hosts, hosts
if os.environ["OUTLAST_ATTEMPT"] == "1":
    heard = []
    signal.signal(signal.SIGTERM, lambda *a: heard.append(a))
    while not heard:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python's end is without handlers
"""


@pytest.mark.parametrize("launcher", ["srun", pytest.param("torchrun", marks=pytest.mark.nightly)])
def test_a_command_in_another_root(launch: Launch, tmp_path: Path, rank_command: list[str], launcher: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "program.py").write_text(PROGRAM)
    words = ["--nodes", "2", "--gpus", "1", "--launcher", launcher, *rank_command, f"job.binds=[{theirs}]"]
    words += ["-t", "00:01:00", "job.lead_seconds=50", "--continue-by", "requeue"]
    hosts = ["srun", "scontrol", "python3", sys.executable]
    run = launch(*words, "--", PYTHON, str(theirs / "program.py"), *hosts)
    over(run, 240)
    assert causes(run) == ["timeout", "done"], job_log(run)
    first, second = run.attempts()
    assert first["job_id"] == second["job_id"] and second["restart_count"] == 1


def test_a_training_in_a_container(launch: Launch, pocket: Pocket, image: Path, outside_tmp: Path) -> None:
    """Charliecloud: namespaces of an ordinary user, and no daemon, as apptainer has them."""
    for path in (*(bind.partition(":")[2] for bind in libraries()), str(outside_tmp / "c")):
        (image / path[1:]).mkdir(parents=True, exist_ok=True)  # what is bound needs a place: the image is read-only
    command = ["ch-run", *(f"--bind={path}" for path in libraries()), "--bind={bind}", str(image), "--"]
    words = ["--nodes", "2", "--gpus", "2", "--launcher", "fork"]
    words += [f"job.rank_command={json.dumps(command)}", f"job.rank_python={PYTHON}", "--name", "c"]
    launch(*words, "--runs-dir", str(outside_tmp), str(write_recipe(outside_tmp)), "train.steps=40", USER="root")
    run = RunDir(outside_tmp / "c")
    reaches(run, 1, 3)
    pocket.ask("scancel", "--signal=USR1", job_of(run))
    over(run, 300)
    assert causes(run) == ["signal", "done"], job_log(run)
    assert run.attempts()[-1]["exits"] == {"exit 0": 4}
    assert events(run, "resume")[1]["step"] >= 3 and len(history(run)) == 40
    assert json.loads((run.claims_dir / "0001.json").read_text())["software"]["prefix"] == "/opt/env"
