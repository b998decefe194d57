"""All launchers on a real Slurm: the same training bit for bit, the same stops and ends, plain programs."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.drill.faults import end_soon
from envs.drill.watch import history, weights
from envs.pocket import Pocket
from slurm.rundir import RunDir
from slurm.step import read_exits
from tests.cluster.conftest import ROOT, Launch, causes, job_log, job_of, over
from tests.cluster.training import reaches, write_recipe
from tests.launchers import DEEPSPEED_AT_NIGHT, LAUNCHERS
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], RunDir]:
    """The run of so many steps that nobody interrupted: four ranks of this machine, without a scheduler."""

    @functools.cache
    def go(steps: int) -> RunDir:
        folder = tmp_path_factory.mktemp("whole")
        recipe = [str(write_recipe(folder)), f"train.steps={steps}"]
        argv = [sys.executable, str(ROOT / "launch.py"), "--cluster", "local", "--gpus", "4", "--launcher", "fork"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*argv, *recipe], env=env, cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return RunDir(folder / "runs" / "small")

    return go


def time_limit(pocket: Pocket, run: RunDir) -> None:
    end_soon(pocket, job_of(run), 7)


def users_stop(pocket: Pocket, run: RunDir) -> None:
    def verb(word: str) -> None:
        argv = [sys.executable, str(ROOT / "launch.py"), word, str(run.path)]
        subprocess.run(argv, env={**os.environ, **pocket.env()}, check=True, capture_output=True, timeout=120)

    verb("stop")
    over(run, 240)
    wait_until(lambda: not pocket.jobs(), "the queue to be empty")
    verb("resume")


def term_to_the_supervisor(pocket: Pocket, run: RunDir) -> None:
    pocket.ask("scancel", "--batch", "--signal=TERM", job_of(run))


def usr1_to_the_ranks(pocket: Pocket, run: RunDir) -> None:
    pocket.ask("scancel", "--signal=USR1", job_of(run))


@pytest.mark.parametrize(
    ("launcher", "cut", "cause", "steps"),
    [
        ("srun", usr1_to_the_ranks, "signal", 40),
        # At least 12 s at four ranks, so that a time limit 7 s away cuts.
        pytest.param("srun", time_limit, "timeout", 200, marks=pytest.mark.nightly),
        pytest.param("torchrun", users_stop, "stop", 200, marks=pytest.mark.nightly),
        pytest.param("deepspeed", term_to_the_supervisor, "signal", 40, marks=DEEPSPEED_AT_NIGHT.marks),
        pytest.param("fork", usr1_to_the_ranks, "signal", 40, marks=pytest.mark.nightly),
    ],
)
def test_cut_and_bit_identical(
    launch: Launch,
    pocket: Pocket,
    recipe: Path,
    whole: Callable[[int], RunDir],
    launcher: str,
    cut: Callable[[Pocket, RunDir], None],
    cause: str,
    steps: int,
) -> None:
    words = ["--nodes", "2", "--gpus", "2", "--launcher", launcher, str(recipe), f"train.steps={steps}"]
    run = launch(*words, name=launcher)
    reaches(run, 1, 3)
    cut(pocket, run)
    over(run, 300)
    assert causes(run) == [cause, "done"], job_log(run)
    assert run.attempts()[1]["exits"] == {"exit 0": 4}
    undisturbed = whole(steps)
    assert history(run, "loss", "grad_norm", "hash") == history(undisturbed, "loss", "grad_norm", "hash")
    assert len(history(run)) == steps and weights(run) == weights(undisturbed)


# Says where it runs, and leaves with 0 when it is told to.
HEARS = """
import os, signal, sys, time
run, rank, attempt = os.environ["OUTLAST_RUN_DIR"], os.environ["RANK"], os.environ["OUTLAST_ATTEMPT"]
if attempt == "1":
    heard = []
    signal.signal(signal.SIGTERM, lambda *a: heard.append(a))
    with open(f"{run}/.{rank}", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{run}/.{rank}", f"{run}/pid-{rank}")
    while not heard:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python's end is without handlers
"""


@pytest.mark.parametrize("launcher", ["torchrun", DEEPSPEED_AT_NIGHT])
def test_an_agents_ranks_hear_and_their_ends_are_told(launch: Launch, pocket: Pocket, launcher: str) -> None:
    """TERM to the supervisor; kill -9 of a rank; the stop file: each ends an attempt of its own run."""
    words = ["--nodes", "2", "--gpus", "2", "--launcher", launcher]

    def ready(name: str) -> RunDir:
        run = launch(*words, program=HEARS, name=name)
        wait_until(lambda: len(list(run.path.glob("pid-*"))) == 4, f"four ranks: {job_log(run)}", 240)
        return run

    told = ready("told")
    term_to_the_supervisor(pocket, told)
    over(told, 240)
    assert causes(told) == ["signal", "done"] and told.attempts()[0]["exits"] == {"exit 0": 4}, job_log(told)

    killed = ready("killed")
    os.kill(int((killed.path / "pid-3").read_text()), signal.SIGKILL)
    over(killed, 240)
    assert causes(killed) == ["crash", "done"], job_log(killed)
    exits = read_exits(killed.attempt_dir(1))
    assert [exits[rank]["host"] for rank in range(4)] == ["node1", "node1", "node2", "node2"]
    assert {exits[rank]["signal"] for rank in range(4)} == {signal.SIGKILL}
    assert min(exits.values(), key=lambda end: end["time"])["rank"] == 3

    stopped = ready("stopped")
    stopped.stop_file.write_text("enough\n")
    over(stopped, 240)
    assert causes(stopped) == ["stop"] and stopped.attempts()[0]["exits"] == {"exit 0": 4}, job_log(stopped)


DDP = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    model(torch.full((8, 4), float(dist.get_rank()))).pow(2).mean().backward()
    optimizer.step()
total = torch.tensor([float(os.environ["LOCAL_RANK"])])
dist.all_reduce(total)
print("weights", model.module.weight.tolist(), "sum", int(total), flush=True)
dist.destroy_process_group()
os._exit(0)  # torch 2.13 aborts now and then while the interpreter ends, under its own torchrun as well
"""


# It is started by fork as by srun: no module whose imports could be shared.
@pytest.mark.parametrize("launcher", [*LAUNCHERS[:-1], pytest.param("fork", marks=pytest.mark.nightly)])
def test_a_plain_ddp_script(launch: Launch, tmp_path: Path, launcher: str) -> None:
    (tmp_path / "ddp.py").write_text(DDP)
    words = ["--nodes", "2", "--gpus", "2", "--launcher", launcher]
    run = launch(*words, "--", sys.executable, "ddp.py", name="ddp")  # the working folder is where it was typed
    over(run, 240)
    first = [run.attempt_dir(1) / f"rank-{rank:04d}.log" for rank in range(4)]
    assert causes(run) == ["done"], "\n".join([job_log(run), *(path.read_text() for path in first)])
    logs = [(run.attempt_dir(1) / f"rank-{rank:04d}.log").read_text() for rank in range(4)]
    said = {log.splitlines()[-1] for log in logs}  # c10d may grumble about names before
    assert len(said) == 1 and said.pop().startswith("weights") and logs[0].endswith(" sum 2\n"), logs


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_bash_script(launch: Launch, tmp_path: Path, launcher: str) -> None:
    script = 'set -u\necho "rank $RANK of $WORLD_SIZE on $(uname -n): $1"\n[[ $OUTLAST_ATTEMPT == 2 ]] || exit 75\n'
    (tmp_path / "run.sh").write_text(script)
    words = ["--nodes", "2", "--gpus", "2", "--launcher", launcher]
    run = launch(*words, "--", "bash", "run.sh", "two words", name="bash")
    over(run, 240)
    assert causes(run) == ["signal", "done"], job_log(run)
    logs = [(run.attempt_dir(2) / f"rank-{rank:04d}.log").read_text() for rank in range(4)]
    assert logs == [f"rank {rank} of 4 on node{rank // 2 + 1}: two words\n" for rank in range(4)]
