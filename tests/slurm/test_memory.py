"""The kernel's counters of its out-of-memory killer, in trees as cgroup v1 and v2 show them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.causes.cause import attempt_cause
from slurm.causes.ends import failure, read_ends
from slurm.node.memory import oom_kills, struck_since
from slurm.rundir import RunDir
from slurm.step import Step
from tests.slurm.conftest import ROOT
from tests.waiting import wait_until

V2 = "0::/slurm/job_7/step_0/task_0\n"
V1 = "5:cpu,cpuacct:/x\n4:memory:/slurm/job_7\n0::/\n"


def tree(root: Path, groups: str, **counters: int) -> dict[str, Path]:
    """A /proc and /sys with these counters: by folder below the mount (v2), `v1_...` for version 1, and `node`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    files = {}
    for name, count in counters.items():
        where = {
            "node": root / "proc/vmstat",
            "task": root / "sys/fs/cgroup/slurm/job_7/step_0/task_0/memory.events",
            "job": root / "sys/fs/cgroup/slurm/job_7/memory.events",
            "v1_job": root / "sys/fs/cgroup/memory/slurm/job_7/memory.oom_control",
        }[name]
        where.parent.mkdir(parents=True, exist_ok=True)
        files[name] = where
        write(where, count)
    return files


def write(counter: Path, count: int) -> None:
    counter.write_text(f"low 0\noom 9\noom_kill {count}\noom_kill_disable 7\n")


@pytest.mark.parametrize(
    ("groups", "counters", "rises", "struck"),
    [
        (V2, {"task": 0, "job": 3, "node": 5}, "task", True),
        (V2, {"task": 0, "job": 3, "node": 5}, "job", False),  # another task of the job
        (V2, {"job": 3, "node": 5}, "job", True),
        (V1, {"v1_job": 1, "node": 5}, "v1_job", True),
        (V1, {"v1_job": 1, "node": 5}, "node", False),  # another job of the node
        (V1, {"node": 5}, "node", True),
        ("", {"node": 5}, "node", True),
        ("", {}, None, False),
    ],
)
def test_the_narrowest_counter_decides(
    tmp_path: Path, groups: str, counters: dict[str, int], rises: str | None, struck: bool
) -> None:
    files = tree(tmp_path, groups, **counters)
    before = oom_kills(tmp_path)
    assert sorted(before.values()) == sorted(counters.values())
    assert not struck_since(before)
    if rises:
        write(files[rises], counters[rises] + 1)
    assert struck_since(before) is struck


def test_a_group_that_is_gone_with_its_task_leaves_it_to_the_one_around(tmp_path: Path) -> None:
    files = tree(tmp_path, V2, task=0, job=3)
    before = oom_kills(tmp_path)
    files["task"].unlink()
    write(files["job"], 4)
    assert struck_since(before)


def test_this_machines_kernel_counts() -> None:
    assert oom_kills(), "neither a control group nor /proc/vmstat has the counter"


# A shim as it runs, but with another root of the counters.
SHIM = "import sys, slurm.node.memory as memory; count = memory.oom_kills; memory.oom_kills = lambda: count(memory.Path(sys.argv[2])); from slurm.node.shim import main; sys.exit(main(sys.argv[1]))"  # fmt: skip
# The first rank is killed as the kernel does it: counted, and by signal 9. The second is killed for that.
RANK = """
import os, signal, sys, time
held = bytearray(300_000_000)
if os.environ["RANK"] == "0":
    counter, count = sys.argv[1:]
    with open(counter, "w") as file:
        file.write(f"oom_kill {count}\\n")
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


@pytest.mark.parametrize(("count", "cause"), [(4, "oom"), (3, "crash")])
def test_a_kill_that_the_kernel_counted_is_an_oom(tmp_path: Path, count: int, cause: str) -> None:
    run, counter = RunDir(tmp_path / "run"), tree(tmp_path / "root", V2, task=3)["task"]
    run.attempt_dir(1).mkdir(parents=True)
    argv = (sys.executable, "-c", RANK, str(counter), str(count))
    step = Step(str(run.path), 1, "spawn", 1, 2, argv, foreign=True)
    shim = [sys.executable, "-P", "-c", SHIM, step.dump(), str(tmp_path / "root")]
    done = subprocess.run(shim, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 128 + 9
    exits = read_ends(run, 1, 2)
    assert [end.signal for end in exits] == [9, 9] and exits[1].known is None
    assert attempt_cause(exits, None, None) == cause
    record = json.loads((run.attempt_dir(1) / "rank-0000.exit").read_text())
    assert record.get("oom", False) is (cause == "oom") and record["memory"] > 300_000_000
    reason = failure(run, 1, cause, exits)
    assert reason.startswith("rank 0: signal 9") and reason.endswith("; see logs/attempt-0001/rank-0000.log")
    assert ("no memory was left (it held 0.3 GB): ask for more (--mem)" in reason) is (cause == "oom")


# Takes and touches memory until the kernel ends it; its peer waits.
HUNGRY = """
import os, time
held = [bytes(range(256)) * 40_000 for _ in range(400)] if os.environ["RANK"] == "0" else time.sleep(600)
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory control group of 300 MB, of this machine's real kernel; root may make one."""
    top = Path("/sys/fs/cgroup")
    second = not (top / "memory").exists()
    group, limit = (top, "memory.max") if second else (top / "memory", "memory.limit_in_bytes")
    group /= f"outlast-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit).write_text("300000000")
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text().strip(), "the group to be empty")
        group.rmdir()


@pytest.mark.nightly
def test_a_kill_of_the_real_kernel_is_an_oom(tmp_path: Path, small_group: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.attempt_dir(1).mkdir(parents=True)
    step = Step(str(run.path), 1, "spawn", 1, 2, (sys.executable, "-c", HUNGRY), foreign=True)
    enter = f"open({str(small_group / 'cgroup.procs')!r}, 'w').write('0')"
    code = f"{enter}; import sys; from slurm.node.shim import main; sys.exit(main(sys.argv[1]))"
    shim = [sys.executable, "-P", "-c", code, step.dump()]
    assert subprocess.run(shim, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120).returncode == 128 + 9
    exits = read_ends(run, 1, 2)
    assert (exits[0].signal, exits[0].known) == (9, "oom") and attempt_cause(exits, None, None) == "oom"
    reason = failure(run, 1, "oom", exits)
    assert "rank 0: signal 9" in reason and "no memory was left (it held 0." in reason, reason
