"""Where and as whom a run lives, on a real Slurm: allocations of the user's own, hostile names, checkouts that go away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.drill.ranks import ranks
from envs.pocket import Pocket
from settings import read_yaml
from slurm import snapshot
from slurm.rundir import RunDir
from tests.cluster.conftest import ROOT, Launch, causes, job_log, job_of, over
from tests.waiting import wait_until

# Waits in its first attempt until a file says go on; a TERM is its stop notice.
WAITS = """
import os, signal, sys, time
run = os.environ["OUTLAST_RUN_DIR"]
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
open(f"{run}/ready-{os.environ['OUTLAST_ATTEMPT']}-{os.environ['RANK']}", "w").close()
while not os.path.exists(f"{run}/go"):
    time.sleep(0.05)
"""


def ready(run: RunDir, attempt: int = 1) -> None:
    wait_until(lambda: list(run.path.glob(f"ready-{attempt}-*")), f"attempt {attempt}\n{job_log(run)}")


# --- --here ---------------------------------------------------------------------------------------------


def test_in_an_allocation_of_the_users_own(pocket: Pocket, launch: Launch, tmp_path: Path) -> None:
    """`launch`: what is left in the queue is cancelled, whatever fails here."""
    program = tmp_path / "program.py"
    program.write_text(WAITS)
    run = RunDir(tmp_path / "runs" / "x")
    env = {**os.environ, **pocket.env()}

    def salloc(*words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, str(ROOT / "launch.py"), *words, "--here", "--runs-dir", str(run.path.parent)]
        argv = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", *argv]
        argv += [] if words[0] == "resume" else ["--", sys.executable, str(program)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(argv, env=env, cwd=tmp_path, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    first = salloc("--name", "x")
    ready(run)
    status = [sys.executable, str(ROOT / "launch.py"), "status", "x", "--json", "--runs-dir", str(run.path.parent)]
    told = json.loads(subprocess.run(status, env=env, capture_output=True, text=True, check=True).stdout)
    assert told[0]["state"] == "running"
    again = [sys.executable, str(ROOT / "launch.py"), "resume", "x", "--runs-dir", str(run.path.parent)]
    twice = subprocess.run(again, env=env, capture_output=True, text=True)
    assert twice.returncode == 78 and "x runs already: process" in twice.stderr
    supervisor = run.supervisor_here()
    assert supervisor is not None
    launch_py = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (supervisor, launch_py):  # Ctrl-C: in a terminal salloc's command is a process group of its own
        os.kill(pid, signal.SIGINT)
    out, _ = first.communicate(timeout=120)
    assert causes(run) == ["stop"] and run.attempts()[0]["exits"] == {"exit 0": 4}, out
    assert "2 nodes x 2 GPUs = 4 ranks" in out and not run.jobs()

    (run.path / "go").touch()
    second = salloc("resume", "x")
    out, _ = second.communicate(timeout=120)
    assert causes(run) == ["stop", "done"] and run.done, out


def test_another_layout_than_the_allocations_is_refused(pocket: Pocket, tmp_path: Path) -> None:
    argv = ["salloc", "--quiet", "--nodes=1", "--gpus-per-node=2", sys.executable, str(ROOT / "launch.py"), "--here"]
    env = {**os.environ, **pocket.env()}
    for words, line in (
        (["--nodes", "2"], "--nodes 2: the allocation"),
        (["--gpus", "4"], "has 2: take --gpus 2"),
        ([], "has 1 CPUs for 2 ranks: take one with salloc --nodes 1 --ntasks-per-node 2 --gpus-per-node 2"),
        (["-t", "01:00:00"], "with --here the allocation has its own time limit"),
    ):
        done = subprocess.run([*argv, *words, "--", "true"], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 78 and line in done.stderr, done.stderr


# --- what Slurm is asked for ------------------------------------------------------------------------------


def test_slurm_may_shorten_the_job(launch: Launch, pocket: Pocket) -> None:
    run = launch("-t", "02:00:00", "--time-min", "00:10:00", "--sbatch", "begin=now+1hour", program="pass")
    facts = pocket.ask("scontrol", "--oneliner", "show", "job", job_of(run))
    assert "TimeLimit=02:00:00" in facts and "TimeMin=00:10:00" in facts


def test_what_no_submit_makes_runs_under_plain_sbatch(launch: Launch, pocket: Pocket) -> None:
    run = launch("--no-submit", program="print('hello')")
    assert not run.jobs()
    pocket.ask("sbatch", str(run.script))
    over(run)
    assert causes(run) == ["done"] and len(run.jobs()) == 2, job_log(run)  # its own id, and its successor's


# --- names and folders ------------------------------------------------------------------------------------

HOSTILE = ["with space", "it's \"quoted\"", "$(touch executed)", "`touch executed`", "a;touch executed", "-n", "%j%u", "ünï→", "#x", "*?["]  # fmt: skip


def test_nothing_of_a_folders_name_is_executed(launch: Launch, tmp_path: Path) -> None:
    for folder in HOSTILE:
        place = tmp_path / folder
        place.mkdir()
        (place / "pro gram.py").write_text("import os; print(os.environ['OUTLAST_RUN_DIR'])")
        launch("--runs-dir", f"./{folder}", "--", sys.executable, "-S", str(place / "pro gram.py"), name="h")
    for folder in HOSTILE:
        run = RunDir(tmp_path / folder / "h")
        over(run)
        assert causes(run) == ["done"], job_log(run)
        assert (run.attempt_dir(1) / "rank-0000.log").read_text() == f"{run.path}\n"
        assert list((run.path / "logs").glob("job-*.log")), list(run.path.parent.rglob("*"))
    assert not list(tmp_path.rglob("executed"))


# --- users and checkouts ----------------------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that an ordinary user can enter, with a checkout in it, and a Python with what the job side needs."""
    folder = Path(tempfile.mkdtemp(prefix="outlast-", dir="/var/tmp"))
    folder.chmod(0o755)
    snapshot.copy_ours(folder)
    home = folder / "python"
    base, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    left_out = shutil.ignore_patterns(
        "__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "*.a"
    )
    shutil.copytree(base / "lib" / version, home / "lib" / version, ignore=left_out, symlinks=True)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy(library, home / "lib" / library.name)
    (home / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), home / "bin" / "python3")
    site = Path(pytest.__file__).parent.parent
    for package in ("msgspec", "yaml", "submitit", "cloudpickle", "typing_extensions.py"):
        source, target = site / package, home / "lib" / version / package
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for path in list(folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() or path.name == "python3" else 0))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("umask", ["077", "022"])
@pytest.mark.parametrize("user", ["nobody", "root"])
def test_a_checkout_that_is_read_only_and_then_gone(pocket: Pocket, public: Path, user: str, umask: str) -> None:
    work = public / "work"
    work.mkdir()
    (work / "program.py").write_text(textwrap.dedent(WAITS))
    shutil.chown(work, user)
    as_user = [] if user == "root" else ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    for path in [public / "code", *(public / "code").rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    argv = ["sh", "-c", f'umask {umask}; exec "$@"', "sh", str(public / "python" / "bin" / "python3")]
    argv += [str(public / "code" / "launch.py"), "--nodes", "2", "--gpus", "1", "--name", "x"]
    argv += ["--", str(public / "python" / "bin" / "python3"), "program.py"]
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **pocket.env()}
    env["LD_LIBRARY_PATH"] = str(public / "python" / "lib")  # of a Python whose library lies where nobody else may look
    done = subprocess.run([*as_user, *argv], env=env, cwd=work, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    run = RunDir(work / "runs" / "x")
    ready(run)
    shutil.rmtree(public / "code")  # the checkout
    (work / "program.py").write_text("edited while it runs: not Python")
    facts = pocket.ask("scontrol", "--oneliner", "show", "job", job_of(run))
    assert f"UserId={user}(" in facts
    # A crash: new ranks read the code again. (A KILL by scancel while a node still starts its task leaves a slurmstepd of
    # 22.05 that waits for itself, and Slurm drains the node: seen in 1 of 10.)
    os.kill(ranks(run)[-1], signal.SIGKILL)
    ready(run, 2)
    subprocess.run([*as_user, "touch", str(run.path / "go")], check=True)
    over(run)
    assert causes(run) == ["crash", "done"], job_log(run)
    assert {path.owner() for path in run.path.rglob("*")} == {user}
    assert not any(path.stat().st_mode & 0o002 for path in run.path.rglob("*") if not path.is_symlink())


def test_update_code_brings_the_code_of_now(launch: Launch, pocket: Pocket, tmp_path: Path) -> None:
    run = launch(program=WAITS)
    ready(run)
    argv = [sys.executable, str(ROOT / "launch.py"), "--runs-dir", str(run.path.parent)]
    env = {**os.environ, **pocket.env()}
    subprocess.run([*argv, "stop", "x"], env=env, check=True, timeout=120)
    over(run)
    wait_until(lambda: not pocket.jobs(), "the queue to be empty")
    marked = run.path / "code" / "slurm" / "supervisor.py"
    marked.write_text(marked.read_text() + "\n# as it was at submission\n")
    (run.path / "go").touch()
    subprocess.run([*argv, "resume", "x", "--update-code"], env=env, check=True, timeout=120)
    assert "as it was at submission" not in marked.read_text()
    over(run)
    assert causes(run) == ["stop", "done"] and read_yaml(run.path / "job.yaml")["name"] == "x"
