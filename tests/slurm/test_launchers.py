"""Agents and rank commands between the shims: whatever stands in between, stops and ends are those of the ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from settings import ConfigError
from slurm import config
from slurm.config import JobConfig
from slurm.node import agents, below, hostfile
from slurm.rundir import RunDir
from slurm.step import Step, enter, read_exits, srun_argv
from tests.launchers import AGENTS, DEEPSPEED
from tests.slurm.conftest import Start, causes, gone
from tests.waiting import wait_until

# Tells its process id, and runs until TERM.
UNTIL_TERM = """
import os, signal, sys, time
run, rank = os.environ["OUTLAST_RUN_DIR"], os.environ["RANK"]
heard = []  # where Slurm signals every process there are two: its own and the shim's
signal.signal(signal.SIGTERM, lambda *a: heard.append(a))
with open(f"{run}/.{rank}", "w") as file:
    file.write(str(os.getpid()))
os.rename(f"{run}/.{rank}", f"{run}/pid-{rank}")
while not heard:
    time.sleep(0.05)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python's end is without handlers
sys.exit(75)
"""
# A wrapper that does not exec: bash stays, and would die of a signal without passing it on.
WRAPPER = ["bash", "-c", '"$@"; exit $?', "wrapper"]


def deepspeed(who: str, *marks: Any) -> Any:
    return pytest.param("deepspeed", who, marks=[*DEEPSPEED.marks, *marks])


def rank_pids(run: RunDir, ranks: int = 2) -> list[int]:
    files = [run.path / f"pid-{rank}" for rank in range(ranks)]
    wait_until(lambda: all(file.exists() for file in files), "the ranks", 120)
    return [int(file.read_text()) for file in files]


def node_shim(process: subprocess.Popen[str]) -> int:
    return wait_until(lambda: below.shims_below(process.pid), "the node's shim", 120)[0]


def signals(run: RunDir, attempt: int = 1) -> list[int | None]:
    exits = read_exits(run.attempt_dir(attempt))
    return [exits[rank]["signal"] for rank in sorted(exits)]


WHO = ["the node's shim alone", "before the ranks are there", "every process"]


@pytest.mark.parametrize(
    ("between", "who"),
    [
        *product(["torchrun", "wrapper"], WHO),
        deepspeed(WHO[2]),
        *(deepspeed(who, pytest.mark.nightly) for who in WHO[:2]),
    ],
)
def test_a_signal_finds_the_ranks(run: RunDir, start: Start, between: str, who: str) -> None:
    """Slurm signals the task's own process, or all that it has started: by the kind of its process tracking."""
    how = {"rank_command": WRAPPER} if between == "wrapper" else {"launcher": between}
    process = start(UNTIL_TERM, gpus_per_node=2, max_attempts=1, **how)
    shim = node_shim(process)
    if who != "before the ranks are there":
        rank_pids(run)
    everyone = [pid for pid in below.all_below(shim) if who == "every process"]
    for pid in [shim, *everyone]:
        os.kill(pid, signal.SIGTERM)
    assert process.wait(120) == 77
    ends = set(run.attempts()[0]["exits"])
    # Its Python, when it comes to be, may not have set the handler yet: then it dies of the signal.
    early = {"signal 15"} if who == "before the ranks are there" else set()
    assert causes(run) == ["signal"] and ends <= {"exit 75"} | early, ends


@pytest.mark.parametrize("launcher", AGENTS)
def test_the_stop_file_under_an_agent(run: RunDir, start: Start, launcher: str) -> None:
    process = start(UNTIL_TERM, gpus_per_node=2, launcher=launcher)
    rank_pids(run)
    run.stop_file.write_text("enough\n")
    assert process.wait(120) == 77
    assert causes(run) == ["stop"] and run.attempts()[0]["exits"] == {"exit 75": 2}


@pytest.mark.parametrize("between", [*AGENTS, "wrapper"])
def test_kill_9_of_a_rank_below_something(run: RunDir, start: Start, between: str) -> None:
    how = {"rank_command": WRAPPER} if between == "wrapper" else {"launcher": between}
    process = start(UNTIL_TERM, gpus_per_node=2, max_attempts=1, **how)
    os.kill(rank_pids(run)[1], signal.SIGKILL)
    assert process.wait(120) == 77
    assert causes(run) == ["crash"]
    assert signals(run)[1] == signal.SIGKILL and len(signals(run)) == 2


@pytest.mark.parametrize("between", [*AGENTS, "wrapper"])
def test_kill_9_of_what_stands_in_between(run: RunDir, start: Start, between: str) -> None:
    how = {"rank_command": WRAPPER} if between == "wrapper" else {"launcher": between}
    process = start(UNTIL_TERM, gpus_per_node=2, max_attempts=1, **how)
    pids = rank_pids(run)
    shim = node_shim(process)
    nearest = [pid for pid in below.all_below(shim) if parent(pid) == shim]
    assert len(nearest) == 1
    os.kill(nearest[0], signal.SIGKILL)
    assert process.wait(120) == 77
    assert causes(run) == ["crash"] and all(gone(pid) for pid in pids)
    assert signals(run) == [signal.SIGKILL] * 2


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_a_rank_leaves_behind_does_not_meet_the_next_attempt(run: RunDir, start: Start) -> None:
    program = """
    import os, subprocess, sys
    run, attempt = os.environ["OUTLAST_RUN_DIR"], os.environ["OUTLAST_ATTEMPT"]
    if attempt == "1":
        left = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print(left.pid, file=open(f"{run}/left", "w"))
        sys.exit(75)
    """
    assert start(program).wait(120) == 0
    assert gone(int((run.path / "left").read_text()))


def test_a_rank_command_that_is_not_there_is_a_configuration_error(run: RunDir, start: Start) -> None:
    assert start("", rank_command=["nonexistent-runtime", "exec"], gpus_per_node=2).wait(120) == 78
    assert causes(run) == ["config"] and run.attempts()[0]["exits"] == {"exit 78": 2}
    assert "outlast: nonexistent-runtime: No such file" in (run.attempt_dir(1) / "node-0000.log").read_text()


def test_a_rank_commands_placeholders() -> None:
    words = ["apptainer", "exec", "--bind", "{binds}", "--env", "RUN={run_dir},B=${X}", "image.sif"]
    filled = enter(words, Path("/runs/my run"), ["/data", "/models/llama", "/data"])
    assert filled[3] == "/runs/my run:/runs/my run,/data:/data,/models/llama:/models/llama"
    assert filled[5] == "RUN=/runs/my run,B=${X}" and (*filled[:3], filled[6]) == (*words[:3], words[6])
    each = enter(["ch-run", "--bind={bind}", "image", "--"], Path("/runs/x"), ["/data"])
    assert each == ("ch-run", "--bind=/runs/x:/runs/x", "--bind=/data:/data", "image", "--")


@pytest.mark.parametrize(("visible", "ids"), [(None, [0, 1]), ("4,7", ["4", "7"]), ("GPU-a,GPU-b,GPU-c", ["GPU-a", "GPU-b"]), ("NoDevFiles", [0, 1])])  # fmt: skip
def test_deepspeeds_launcher_shows_its_ranks_the_devices_of_the_node(
    tmp_path: Path, visible: str | None, ids: list[object]
) -> None:
    slots = hostfile.read(hostfile.write(tmp_path / "hostfile", ["n1", "n2"], 2))
    argv = agents.deepspeed(agents.Node(1, slots, visible, "10.0.0.1", 15000, ["worker"]))
    world = agents.json.loads(
        agents.base64.urlsafe_b64decode(argv[argv.index("deepspeed.launcher.launch") + 2].partition("=")[2])
    )
    assert world == {"n1": [0, 1], "n2": ids}


def test_every_agent_has_its_word() -> None:
    words = get_args(get_type_hints(JobConfig)["launcher"])
    assert {"srun", "fork", *agents.AGENTS} == set(words)


def test_where_the_shims_start() -> None:
    """Above a rank command on the Python of the host; without one where the ranks are, as under pyxis."""
    step = Step("/run", 1, "srun", 2, 4, ("train",), python="/opt/python3")
    argv = srun_argv(step, 8, ["--container-image=my.sif"])
    assert argv[argv.index("--container-image=my.sif") + 1] == "/opt/python3"
    assert {"--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=8", "--gpu-bind=none"} <= set(argv)
    argv = srun_argv(replace(step, launcher="deepspeed", prefix=("enter", "it")), 8)
    assert argv[argv.index("--export=ALL") + 1 :][:2] == ["--cpus-per-task=32", sys.executable]


@pytest.mark.parametrize(("launcher", "package"), [("torchrun", "torch"), ("deepspeed", "deepspeed")])
def test_an_agent_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, launcher: str, package: str) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    job: Any = {"name": "x", "launcher": launcher}
    with pytest.raises(ConfigError, match=f"--launcher {launcher}: {sys.executable} has no {package}: install it"):
        config.check_launcher(JobConfig(**job))
    for elsewhere in ({"rank_python": "/opt/python3"}, {"rank_command": ["enter"]}, {"srun_args": ["--x"]}):
        config.check_launcher(JobConfig(**job, **elsewhere))  # nobody can look there from here
