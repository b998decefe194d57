"""Ranks in a root file system of their own, with a Python of its own and no Slurm, as in a container."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from envs.drill.faults import end_soon
from envs.drill.watch import events, history
from envs.pocket import Pocket
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
def rank_command(tmp_path: Path) -> list[str]:
    """Words for launch.py: a root with libraries and this Python under another name, but no program beside it."""
    root, library = tmp_path / "root", f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("opt/python/bin", "opt/env/bin", "tmp"):
        (root / folder).mkdir(parents=True)
    shutil.copy2(os.path.realpath(sys.executable), root / "opt/python/bin/python3")
    (root / "opt/env/bin/python").symlink_to("/opt/python/bin/python3")
    (root / "opt/env/pyvenv.cfg").write_text("home = /opt/python/bin\n")
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    # The Python may name its own shared library by its folder here; its programs are not in there.
    same = ["/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib", "/etc", "/proc", "/dev"]
    fixed = [*(f"{path}:{path}" for path in same), f"{sys.base_prefix}/lib:/opt/python/lib"]
    fixed.append(f"{sysconfig.get_path('purelib')}:/opt/env/{library}/site-packages")
    (tmp_path / "enter.sh").write_text(ENTER)
    words = ["sh", str(tmp_path / "enter.sh"), str(root), ",".join(fixed), "{binds}"]
    return [f"job.rank_command={json.dumps(words)}", f"job.rank_python={PYTHON}"]


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
    words += ["-t", "00:01:00", "job.lead_seconds=40", "--continue-by", "requeue"]
    hosts = ["srun", "scontrol", "python3", sys.executable]
    run = launch(*words, "--", PYTHON, str(theirs / "program.py"), *hosts)
    over(run, 240)
    assert causes(run) == ["timeout", "done"], job_log(run)
    first, second = run.attempts()
    assert first["job_id"] == second["job_id"] and second["restart_count"] == 1


def test_a_training_in_another_root(launch: Launch, pocket: Pocket, tmp_path: Path, rank_command: list[str]) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    words = ["--nodes", "2", "--gpus", "2", "--launcher", "fork", "--continue-by", "requeue", *rank_command]
    run = launch(*words, str(write_recipe(folder)), "train.steps=200")
    reaches(run, 1, 3)
    end_soon(pocket, job_of(run), 7)
    over(run, 300)
    *cuts, end = causes(run)  # the limit that was moved stays the job's: on a slow machine it cuts again
    assert end == "done" and set(cuts) == {"timeout"}, job_log(run)
    assert [record["restart_count"] for record in run.attempts()] == list(range(len(cuts) + 1))
    assert run.attempts()[-1]["exits"] == {"exit 0": 4}
    assert events(run, "resume")[1]["step"] >= 3 and len(history(run)) == 200
