"""What users get wrong, on a real Slurm: one line and exit 78 before anything is queued, and no folder left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from envs.pocket import Pocket
from tests.cluster.conftest import ROOT

PARTITIONS = {
    "small": "MaxTime=10 MaxNodes=1",
    "large": "MinNodes=2",
    "closed": "State=INACTIVE",
    "drained": "State=DRAIN",
    "teaching": "AllowAccounts=teach",
    "strict": "DenyAccounts=p1",
    "patient": "AllowQos=long",
    "reserved": "ReqResv=YES",
}


@pytest.fixture(scope="module")
def site(pocket: Pocket) -> Iterator[Pocket]:
    """The pocket with partitions as sites have them, one node with a feature, and a reservation for others."""
    for name, facts in PARTITIONS.items():
        pocket.ask(
            "scontrol",
            "create",
            f"PartitionName={name}",
            "Nodes=ALL",
            *(["State=UP"] if "State" not in facts else []),
            *facts.split(),
        )
    pocket.ask("scontrol", "update", "NodeName=node1", "AvailableFeatures=a100", "ActiveFeatures=a100")
    reservation = ["ReservationName=course", "StartTime=now+1day", "Duration=10", "Nodes=node2", "Users=nobody"]
    pocket.ask("scontrol", "create", "reservation", *reservation)
    yield pocket
    pocket.ask("scontrol", "delete", "ReservationName=course")
    pocket.ask("scontrol", "update", "NodeName=node1", "AvailableFeatures=", "ActiveFeatures=")
    for name in PARTITIONS:
        pocket.ask("scontrol", "delete", f"PartitionName={name}")


SAYS = "Slurm says: "


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("-t 12:99:00", "command line: walltime=12:99:00: minutes and seconds go to 59; a walltime is written [D-]HH:MM:SS"),
        ("-t 90", "command line: walltime=90: a walltime is written [D-]HH:MM:SS, for example 24:00:00 or 2-00:00:00"),
        ("-t 3-00:00:00", "--walltime 3-00:00:00: partition batch allows 1-00:00:00: the run goes on by itself, take --walltime 1-00:00:00"),
        ("-p small -t 00:20:00", "--walltime 00:20:00: partition small allows 00:10:00: the run goes on by itself, take --walltime 00:10:00"),
        ("-p small --nodes 2", "--nodes 2: partition small gives one job 1 node: take --nodes 1"),
        ("-p large --nodes 1", "--nodes 1: partition large gives one job no less than 2 nodes"),
        ("--nodes 5", "--nodes 5: partition batch has 2 nodes: take --nodes 2"),
        ("--gpus 16", "--gpus 16: partition batch has 8 GPUs a node: --nodes 2 --gpus 8 is the same 16 ranks (2 nodes x 8 GPUs = 16 ranks)"),
        ("--gpus 8 job.cpus_per_gpu=9", "job.cpus_per_gpu=9: 8 GPUs x 9 = 72 cores, a node of partition batch has 64: take job.cpus_per_gpu=8"),
        ("--mem 64G", "--mem 64G: a node of partition batch has 16000M: take --mem 0 for all of it"),
        ("--mem 12Q", f"--mem 12Q: {SAYS}Invalid --mem specification: write 16000M, 120G, or 0 for all of a node"),
        ("-p bach", "--partition bach: there is no such partition: did you mean batch?"),
        ("-p batch,bach", "--partition bach: there is no such partition: did you mean batch?"),
        ("-p closed", "--partition closed: its state is inactive, it takes no jobs now: choose another"),
        ("-p drained", "--partition drained: its state is drain, it takes no jobs now: choose another"),
        ("-p teaching -A p1", "--account p1: partition teaching admits teach only"),
        ("-p strict -A p1", "--account p1: partition strict does not admit it: take another --account or --partition"),
        ("-p patient -q short", "--qos short: partition patient admits long only"),
        ("-p reserved", f"--partition reserved: {SAYS}Access/permission denied: see `sinfo --summarize`"),
        ("-C a10", f"--constraint a10: {SAYS}Invalid feature specification: did you mean a100?"),
        ("-C a100 --nodes 2", f"--constraint a100 --gpus 1 --nodes 2: {SAYS}Requested node configuration is not available: no node has all of it: ask for less"),
        ("-w node9", f"--nodelist node9: {SAYS}Invalid node name specified: see `sinfo --Node`"),
        ("-x node9", f"--exclude node9: {SAYS}Invalid node name specified: see `sinfo --Node`"),
        ("-x node1 --nodes 2", f"--exclude node1 --gpus 1 --nodes 2: {SAYS}Requested node configuration is not available: no node has all of it: ask for less"),
        ("--reservation curse", f"--reservation curse: {SAYS}Requested reservation is invalid: did you mean course?"),
        ("--reservation course", f"--reservation course: {SAYS}Access denied to requested reservation: see `scontrol show reservation`"),
        ("--sbatch gres=fpga:1", f"--sbatch gres=fpga:1 --gpus 1: {SAYS}Invalid generic resource (gres) specification: this site asks for GPUs in another way than --gpus-per-node=N: see its documentation"),
        ("--sbatch licenses=matlab", f"--sbatch licenses=matlab: {SAYS}Invalid license specification: see `scontrol show licenses`"),
        ("--sbatch begin=tomorow", f"--sbatch begin=tomorow: {SAYS}Invalid time specification (pos=0): tomorow; Invalid --begin specification: see `man sbatch`"),
        ("--time-min 3-00:00:00", f"--time-min 3-00:00:00: {SAYS}Invalid time-min specification (exceeds job's time or other limits): it must not exceed --walltime, nor the partition's limit"),
        ("--sbatch frobnicate=3", f"--sbatch frobnicate=3: {SAYS}unrecognized option '--frobnicate=3': see `man sbatch`"),
    ],
)  # fmt: skip
def test_mistakes(
    site: Pocket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    line: str,
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    monkeypatch.chdir(tmp_path)
    words = flags.split() if "--gpus" in flags else ["--gpus", "1", *flags.split()]
    assert launch.main(["--name", "x", *words, "--", "true"]) == 78
    assert capsys.readouterr().err == f"outlast: {line}\n"
    assert not site.jobs() and not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(("mount", "why"), [("size=64k", "No space left on device"), ("ro", "Read-only file system")])
def test_a_runs_folder_that_takes_nothing(site: Pocket, tmp_path: Path, mount: str, why: str) -> None:
    """On a tmpfs that only launch.py sees. Root writes everywhere but on a full disk and a read-only one."""
    namespace = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    script = f'mount -t tmpfs -o {mount} tmpfs "$1"; shift; "$@"; code=$?; ls -A "$PWD" | grep -v lost; exit $code'
    launched = [sys.executable, str(ROOT / "launch.py"), "--runs-dir", str(tmp_path), "--gpus", "1", "--name", "x"]
    argv = [*namespace, "sh", "-c", script, "sh", str(tmp_path), *launched, "--", "true"]
    done = subprocess.run(argv, env={**os.environ, **site.env()}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 78, done
    assert why in done.stderr and f"outlast: --runs-dir {tmp_path}: " in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "" and not site.jobs()
