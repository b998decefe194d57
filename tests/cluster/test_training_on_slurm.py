"""The main job on a real Slurm: cut, preempted, killed, stopped, and bit for bit the run that nobody interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.drill.faults import end_soon
from envs.drill.ranks import ranks
from envs.drill.watch import events, history, weights
from envs.pocket import Pocket
from slurm.node import node_memory
from slurm.rundir import RunDir
from slurm.watch.status import status
from tests.cluster.conftest import ROOT, Launch, causes, job_log, job_of, over
from tests.cluster.training import reaches
from tests.waiting import wait_until
from trainer.report.files import made


@pytest.mark.parametrize(
    # About 15 s of steps, so that 7 s are not all. With ddp the drill's test shows the same.
    ("engine", "steps"),
    [pytest.param("ddp", 200, marks=pytest.mark.nightly), ("fsdp", 100)],
)
def test_killed_cut_and_preempted_is_bit_identical(
    launch: Launch, pocket: Pocket, recipe: Path, engine: str, steps: int
) -> None:
    words = ["--nodes", "2", "--gpus", "2", "--launcher", "fork", "-p", "preempt", str(recipe)]
    words += [f"engine.kind={engine}", f"train.steps={steps}"]
    asked = time.time()
    run = launch(*words, name="cut")
    told = time.time()
    reaches(run, 1, 16)  # past a save, so that the crash loses steps and the next attempt replays them
    os.kill(ranks(run)[-1], signal.SIGKILL)
    reaches(run, 2, 3)
    end_soon(pocket, job_of(run), 7)
    reaches(run, 3, 2)
    pocket.ask("sbatch", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    over(run, 240)
    assert causes(run) == ["crash", "timeout", "preemption", "done"], job_log(run)
    # On a machine under load Slurm's own TERM at the limit may come before the ranks' vote; both are that limit.
    assert events(run, "stop")[0]["reason"] in ("deadline", "signal SIGTERM", "timeout")
    job_ids = [record["job_id"] for record in run.attempts()]
    assert job_ids[0] == job_ids[1] and len(set(job_ids)) == 3

    whole = launch(*words, name="whole")
    over(whole, 240)
    assert causes(whole) == ["done"], job_log(whole)
    assert history(run, "loss", "grad_norm", "hash") == history(whole, "loss", "grad_norm", "hash")
    assert len(history(run)) == steps
    assert weights(run) == weights(whole)
    assert not node_memory.folder(run.path).exists()
    report = made(run.path)
    assert report.proof.ok and "none skipped, none twice" in report.proof.findings[1].text, report.proof
    assert sum(report.where.parts) == pytest.approx(report.where.wall)
    assert status([run])[0].goodput == pytest.approx(report.where.goodput, abs=0.001)
    end = run.attempts()[-1]["end"]
    assert end - told < report.where.wall < end - asked  # from its submission on
    assert ">done<" in (run.path / "report.html").read_text()  # written before DONE


def test_what_a_failed_run_kept_in_memory_is_deleted(launch: Launch, pocket: Pocket, recipe: Path) -> None:
    run = launch("--nodes", "2", "--gpus", "1", "--launcher", "fork", "--max-attempts", "1", str(recipe), name="once")
    reaches(run, 1, 2)
    kept = node_memory.folder(run.path)
    assert {path.name for path in kept.glob("*.safetensors")} == {f"0001-rank-000{rank}.safetensors" for rank in (0, 1)}
    os.kill(ranks(run)[-1], signal.SIGKILL)
    over(run, 60)
    assert causes(run) == ["crash"], job_log(run)
    wait_until(lambda: not kept.exists(), "the supervisor's last step")


@pytest.mark.nightly
@pytest.mark.parametrize("continue_by", ["chain", "array", "requeue"])
def test_three_time_limits_are_bit_identical(launch: Launch, pocket: Pocket, recipe: Path, continue_by: str) -> None:
    words = ["--nodes", "2", "--gpus", "2", "--launcher", "fork", "--continue-by", continue_by, str(recipe)]
    run = launch(*words, name="cut")
    for attempt in (1, 2, 3):
        reaches(run, attempt, 16)
        claim = run.read_claim(attempt)
        assert claim is not None
        end_soon(pocket, str(claim.job_id), 7)
    over(run, 400)
    assert causes(run) == ["timeout"] * 3 + ["done"], job_log(run)
    assert [record["restart_count"] for record in run.attempts()] == [
        0,
        *([1, 2, 3] if continue_by == "requeue" else [0] * 3),
    ]

    whole = launch(*words, name="whole")
    over(whole, 240)
    assert history(run, "loss", "grad_norm", "hash") == history(whole, "loss", "grad_norm", "hash")
    assert len(history(run)) == len(events(run, "step")) == 240  # no step was done twice
    assert weights(run) == weights(whole)


SLOW_DISK = """
import os
from pathlib import Path

fsync = os.fsync


def slow(fd):
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    if "/checkpoints/" in str(path) and (Path(__file__).parent / "slow").exists():
        (Path(__file__).parent / "met").touch()
        __import__("time").sleep(20)
    fsync(fd)


os.fsync = slow
"""


@pytest.mark.nightly
def test_a_save_of_20_seconds_in_a_grace_of_5(launch: Launch, pocket: Pocket, recipe: Path, tmp_path: Path) -> None:
    """The disk becomes slow after a save that was quick: the one of the stop is begun, and Slurm kills it. What was
    staged of it is in the node's memory: the next attempt finishes it there."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_DISK)
    words = ["--nodes", "1", "--gpus", "2", "-p", "preempt", f"job.environment.PYTHONPATH={site}", str(recipe)]
    run = launch(*words, name="slow")
    reaches(run, 1, 16)
    wait_until(lambda: run.committed_step() == 15, "the first save")
    (site / "slow").touch()
    pocket.ask("sbatch", "-p", "urgent", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_until(lambda: run.newest_epoch() == 2, "the next attempt")
    assert (site / "met").exists(), "no save was begun"
    (site / "slow").unlink()
    reaches(run, 2, 1)
    assert (
        run.attempts()[0]["committed_step"] == 15 < events(run, "stop")[0]["step"] == events(run, "resume")[1]["step"]
    )
    over(run, 240)
    whole = launch(*words, name="whole")
    over(whole, 240)
    assert causes(run) == ["preemption", "done"] and weights(run) == weights(whole), job_log(run)


def test_two_nodes_of_eight_gpus_word_for_word(launch: Launch, pocket: Pocket, recipe: Path) -> None:
    """`python launch.py --nodes 2 --gpus 8`, with ./recipe.yaml where it is typed."""
    recipe.write_text(recipe.read_text().replace("steps: 240", "steps: 6"))
    argv = [sys.executable, str(ROOT / "launch.py"), "--nodes", "2", "--gpus", "8"]
    env = {**os.environ, **pocket.env()}
    typed = subprocess.run(argv, cwd=recipe.parent, env=env, capture_output=True, text=True, timeout=120)
    assert typed.returncode == 0 and "2 nodes x 8 GPUs = 16 ranks" in typed.stdout, typed.stdout + typed.stderr
    run = RunDir(recipe.parent / "runs" / "small")
    over(run, 240)
    assert causes(run) == ["done"] and run.attempts()[0]["exits"] == {"exit 0": 16}, job_log(run)
    assert len(history(run)) == 6


def test_stop_and_resume(launch: Launch, pocket: Pocket, recipe: Path) -> None:
    def verb(*words: str) -> str:
        argv = [sys.executable, str(ROOT / "launch.py"), *words, "--runs-dir", str(run.path.parent)]
        done = subprocess.run(argv, env={**os.environ, **pocket.env()}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run = launch("--nodes", "1", "--gpus", "2", "--launcher", "torchrun", str(recipe), name="s")
    reaches(run, 1, 2)
    assert "saves at its next step" in verb("stop", "s")
    over(run)
    assert run.cancelled is not None and causes(run) == ["stop"], job_log(run)
    wait_until(lambda: not pocket.jobs(), "the successor to be cancelled")
    assert not run.stop_file.exists()
    step = events(run, "stop")[0]["step"]
    assert "ended" in verb("status", "s") and f"step {step}" in verb("status", "s")

    assert f"goes on from step {step}" in verb("resume", "s", "--gpus", "4", "--launcher", "fork")
    reaches(run, 2, 2)
    assert events(run, "resume")[1]["step"] == step
    assert "running" in verb("status", "s")
    verb("stop", job_of(run, -2))  # a run is also known by its job's id
    over(run)


def test_a_run_that_waits_gives_up_its_place(launch: Launch, pocket: Pocket, recipe: Path) -> None:
    blocker = pocket.ask("sbatch", "--parsable", "-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 60").strip()
    run = launch("--nodes", "2", "--gpus", "2", str(recipe), name="w")
    argv = [sys.executable, str(ROOT / "launch.py"), "stop", str(run.path)]
    subprocess.run(argv, env={**os.environ, **pocket.env()}, check=True, timeout=120)
    wait_until(lambda: pocket.jobs() == [blocker], "the run's job to leave the queue")
    assert run.cancelled is not None and run.newest_epoch() == 0
    pocket.ask("scancel", blocker)
