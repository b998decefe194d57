"""Bringing pockets up and down: twice, after accidents, side by side, without namespaces, as anybody."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.pocket import Pocket, PocketError, daemons, find, layout, network, process, up
from envs.pocket.cli import main
from tests.pocket.rig import NAME, ROOT, needs_namespaces, needs_slurm, submit, wait_for

pytestmark = needs_slurm
PROJECT = Path(__file__).parents[2]


def pids(pocket: Pocket) -> dict[str, int | None]:
    return {name: process.find(argv) for name, argv in daemons.all_of(pocket.layout).items()}


def test_up_again_is_the_same(pocket: Pocket) -> None:
    before = pids(pocket)
    assert up(NAME, nodes=2, gpus=8) == pocket == find(NAME)
    assert pids(pocket) == before


def test_jobs_keep_the_shape(pocket: Pocket, scratch: Path) -> None:
    job = submit(pocket, scratch, "exec sleep 100")
    with pytest.raises(PocketError, match=f"2 nodes x 8 GPUs.* cannot start afresh .* 1 jobs .{job.id}"):
        up(NAME, nodes=1, gpus=8)
    assert job.facts()["JobState"] in ("PENDING", "RUNNING")


def test_idle_pocket_changes_its_shape(pocket: Pocket) -> None:
    said: list[str] = []
    assert up(NAME, nodes=1, gpus=2, say=said.append).nodes == ["node1"]
    assert said == [f"pocket {NAME} starts afresh with 1 nodes x 2 GPUs (was: 2 nodes x 8 GPUs)"]


def test_leftovers_make_way(pocket: Pocket, scratch: Path) -> None:
    submit(pocket, scratch, "echo ready; exec sleep 4322").wait_text("ready")
    old = pids(pocket)
    controller = old["slurmctld"]
    assert controller is not None
    os.kill(controller, signal.SIGKILL)
    shutil.rmtree(pocket.folder / "spool")
    (pocket.folder / "pocket.json").unlink()
    assert find(NAME) is None

    fresh = up(NAME, nodes=2, gpus=8)
    assert fresh.status().healthy
    assert not set(old.values()) & set(pids(fresh).values())
    assert ["sleep", "4322"] not in process.command_lines().values()


def test_one_that_does_not_come_up_leaves_no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else launch.py would find it, and queue on nodes that are dead."""
    name = f"{NAME}-broken"
    started = []

    def start(plan: layout.Layout, daemon: str) -> None:
        if daemon == "node1":
            started.extend(process.find(argv) for argv in daemons.all_of(plan).values())
            raise PocketError("slurmd: cannot start here")
        daemons_start(plan, daemon)

    daemons_start = daemons.start
    monkeypatch.setattr(daemons, "start", start)
    with pytest.raises(PocketError, match="cannot start here"):
        up(name, nodes=1, gpus=1)
    assert any(started) and find(name) is None
    assert not {pid for pid in started if pid} & set(process.command_lines())
    monkeypatch.undo()
    assert main(["down", "--name", name]) == 0


def test_two_pockets_side_by_side(pocket: Pocket) -> None:
    second = up(f"{NAME}-second", nodes=1, gpus=1)
    try:
        assert second.layout.index != pocket.layout.index
        assert second.ask("srun", "hostname").split() == ["node1"]
        assert pocket.ask("srun", "--nodes=2", "printenv", "SLURM_CLUSTER_NAME").split() == [NAME] * 2
    finally:
        second.down()
    assert find(second.name) is None
    assert not second.folder.exists()
    assert pocket.status().healthy


@needs_namespaces
def test_down_leaves_nothing(pocket: Pocket) -> None:
    second = up(f"{NAME}-second", nodes=2, gpus=1)
    cable = network.LINKS / second.layout.cable
    second.down()
    assert not cable.exists()
    assert not list(network.NAMESPACES.glob(f"{second.layout.cable}-*"))
    assert not list(daemons.processes(second.folder, []))


def test_without_namespaces(scratch: Path) -> None:
    flat = up(f"{NAME}-flat", nodes=2, gpus=8, namespaces=False)
    try:
        names = flat.ask("srun", "--nodes=2", "printenv", "SLURMD_NODENAME").split()
        assert sorted(names) == ["node1", "node2"]
        job = submit(flat, scratch, "srun printenv SLURM_NODEID", "--nodes=2", "--gpus-per-node=8")
        job.wait_state("COMPLETED")
        assert sorted(job.text().split()) == ["0", "1"]
        with pytest.raises(PocketError, match="cut_link needs a node with its own network"):
            flat.cut_link("node1")
        submit(flat, scratch, "echo ready; exec sleep 4323").wait_text("ready")
    finally:
        flat.down()
    assert ["sleep", "4323"] not in process.command_lines().values()


@pytest.mark.skipif(not ROOT, reason="only root can become another user")
def test_ordinary_user_brings_up_an_own_one(scratch: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "OUTLAST_POCKET_DIR": str(scratch)}

    def as_nobody(*argv: str) -> str:
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        done = subprocess.run([*user, *argv], env=env, cwd=scratch, text=True, capture_output=True)
        assert done.returncode == 0, done
        return done.stdout

    shutil.chown(scratch, "nobody")
    pocket = ["/usr/bin/python3", "-B", "-m", "envs.pocket"]
    try:
        as_nobody(*pocket, "up", "--nodes=2")
        env["SLURM_CONF"] = str(scratch / "pocket" / "slurm.conf")
        assert as_nobody("srun", "--nodes=2", "id", "-un").split() == ["nobody"] * 2
    finally:
        as_nobody(*pocket, "down")
    assert not (scratch / "pocket").exists()


def test_command_line(capsys: pytest.CaptureFixture[str], pocket: Pocket) -> None:
    assert main(["up", "--name", NAME, "--nodes", "2", "--gpus", "8"]) == 0
    assert f"export SLURM_CONF={pocket.slurm_conf}" in capsys.readouterr().out
    assert main(["status", "--name", NAME, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [(node["name"], node["slurmd"], node["state"]) for node in status["nodes"]] == [
        ("node1", True, "idle"),
        ("node2", True, "idle"),
    ]
    assert main(["status", "--name", "nowhere"]) == 1
    assert main(["up", "--name", "No!"]) == 1
    assert "small letters" in capsys.readouterr().err


def test_up_lets_go_of_its_callers_pipes() -> None:
    """Daemons that held them would keep this call waiting until its timeout."""
    name = f"{NAME}-second"

    def pocket(*argv: str) -> None:
        command = [sys.executable, "-m", "envs.pocket", *argv, "--name", name]
        subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=120, check=True)

    try:
        pocket("up", "--nodes=1")
    finally:
        pocket("down")


def test_dead_node_daemon_shows(pocket: Pocket) -> None:
    pocket.stop_slurmd("node2")
    assert [node.slurmd for node in pocket.status().nodes] == [True, False]
    assert main(["status", "--name", NAME]) == 1
    pocket.start_slurmd("node2")
    wait_for(lambda: pocket.status().healthy)
