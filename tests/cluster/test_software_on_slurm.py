"""A site without a way out of its nodes: everything is prepared before, and the environment comes along as one file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.drill.watch import events
from settings import dump_yaml
from slurm.rundir import RunDir
from tests.cluster.conftest import ROOT, Launch, causes, job_log, over
from tests.cluster.training import write_recipe

# On each node of the job: nothing answers outside, since no route leads there.
OUTSIDE = """
import errno, os, socket, sys
assert socket.socket().connect_ex(("198.51.100.1", 53)) == errno.ENETUNREACH
open(f"{sys.argv[1]}/shut-{os.uname().nodename}", "w").close()
"""
PROFILE = {
    "network": {"environment": {"NCCL_SOCKET_IFNAME": "eth", "NCCL_IB_TIMEOUT": 18}, "host_suffix": "i"},
    "job": {"poll_seconds": 1.0, "archive": "$OUR_SCRATCH/env.tar", "node_local": "$OUR_NODE_DISK"},
}
NAMES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_TIMEOUT", "TRITON_CACHE_DIR", "MIOPEN_USER_DB_PATH")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Of a virtual environment that has few files: the packages of this one, and one of its own that tells of a rank."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    [site] = venv.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(
        "import json, os\n"
        "if 'RANK' in os.environ:\n"
        f"    told = {{name: os.environ.get(name) for name in {NAMES}}}\n"
        "    with open(f'{os.environ[\"OUTLAST_RUN_DIR\"]}/rank-{os.environ[\"RANK\"]}.json', 'w') as file:\n"
        "        json.dump(told, file)\n"
    )
    return venv / "bin" / "python"


@pytest.fixture
def node_disk(tmp_path: Path) -> Iterator[Path]:
    """Both nodes are this machine: what each has of its own is one folder here."""
    disk = tmp_path / "disk"
    disk.mkdir()
    yield disk
    shutil.rmtree(disk)


def test_prepared_and_then_trained_without_a_network(
    launch: Launch, tmp_path: Path, python: Path, node_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("OUR_SCRATCH", str(scratch))
    monkeypatch.setenv("OUR_NODE_DISK", str(node_disk))
    (tmp_path / "site.yaml").write_text(dump_yaml(PROFILE))
    (tmp_path / "outside.py").write_text(OUTSIDE)
    words = [
        str(write_recipe(tmp_path)),
        "train.steps=6",
        "evaluation.every=0",
        "--cluster",
        str(tmp_path / "site.yaml"),
    ]

    argv = [python, ROOT / "launch.py", "prepare", *words, "--runs-dir", tmp_path / "runs"]
    prepared = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    assert f"{scratch}/env.tar: {tmp_path}/venv in 0.0" in prepared.stdout
    assert f"{scratch}/env.tar: tried without a network" in prepared.stdout and "nothing was fetched" in prepared.stdout

    outside = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        sys.executable,
        "-S",
        "outside.py",
        str(tmp_path),
    ]
    setup = f"job.setup={json.dumps([f'cd {tmp_path}', ' '.join(outside)])}"
    run = launch("--nodes", "2", "--gpus", "1", *words, setup, NCCL_IB_TIMEOUT="22")
    over(run)
    assert causes(run) == ["done"], job_log(run) + node_logs(run)
    assert sorted(path.name for path in tmp_path.glob("shut-*")) == ["shut-node1", "shut-node2"]

    # The ranks ran from what each node has unpacked, which was sent once and stays for the next attempt there.
    claim = json.loads((run.claims_dir / "0001.json").read_text())
    ours = node_disk / f"outlast-{os.getuid()}"
    [place] = [path for path in ours.iterdir() if path.is_dir() and path.name.startswith("env-")]
    assert claim["software"]["prefix"] == str(place) and (place / "bin" / "python").is_symlink()
    assert "env.tar is on every node: " in job_log(run) and not list(ours.glob("*.tar"))
    # The site's network, but for what this shell says itself; gloo gets the interface by its whole name.
    told = [json.loads((run.path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    expected = ["eth", "eth0", "22", f"{ours}/triton", f"{ours}/miopen"]
    assert told == [dict(zip(NAMES, expected, strict=True))] * 2
    assert "node1 is by its name (name node1i: " in (run.attempt_dir(1) / "rank-0000.log").read_text()
    assert not events(run, "software")


def node_logs(run: RunDir) -> str:
    return "\n".join(path.read_text() for path in sorted(run.attempt_dir(1).glob("*.log")))
