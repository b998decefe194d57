"""The doctor on a real Slurm: what was planted is found, and nothing on a cluster that is well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import launch
from envs.pocket import Pocket
from settings import dump_yaml
from slurm.doctor import scheduler, software, storage
from slurm.doctor.case import Case, Check, examine
from slurm.doctor.command import resolved
from slurm.doctor.finding import Finding
from slurm.sites import cluster as clusters
from slurm.sites.profile import read_profile
from slurm.submission import merged_job
from tests.cluster.conftest import ROOT, Launch, causes, job_log, over
from tests.cluster.training import write_recipe

PARTITIONS = {"brief": "MaxTime=10", "shut": "State=DOWN", "lessons": "AllowAccounts=teach", "longs": "AllowQos=long"}


@pytest.fixture(scope="module")
def site(pocket: Pocket) -> Iterator[Pocket]:
    for name, facts in PARTITIONS.items():
        state = [] if "State" in facts else ["State=UP"]
        pocket.ask("scontrol", "create", f"PartitionName={name}", "Nodes=ALL", *state, facts)
    yield pocket
    for name in PARTITIONS:
        pocket.ask("scontrol", "delete", f"PartitionName={name}")


@pytest.fixture
def here(site: Pocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("SBATCH_ACCOUNT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def case(folder: Path, job: dict[str, Any], profile: dict[str, Any]) -> Case:
    """A case of this cluster, with the profile of a site that wants this."""
    (folder / "site.yaml").write_text(dump_yaml(profile))
    cluster = replace(clusters.find("auto"), profile=read_profile(str(folder / "site.yaml")))
    layers = [({"name": "x", "nodes": 2, "gpus_per_node": 1, **job}, "test")]
    return Case(cluster, merged_job(layers, cluster), folder / "runs")


def wrong(case: Case, *checks: Check) -> list[Finding]:
    return [finding for finding in examine(case, checks) if finding.level != "ok"]


@contextmanager
def drained(pocket: Pocket, node: str) -> Iterator[None]:
    pocket.ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=broken fan")
    try:
        yield
    finally:
        pocket.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


def shifted(case: Case) -> Case:
    return replace(case, now=lambda: case.now() - 3600)


def never_requeues(case: Case) -> Case:
    assert case.cluster.site is not None
    return replace(case, cluster=replace(case.cluster, site=replace(case.cluster.site, requeues=False)))


def overridden(case: Case) -> Case:
    return replace(case, environ={**os.environ, "SBATCH_PARTITION": "long"})


def over_quota(case: Case) -> Case:
    """`quota` as Linux' own prints it."""
    tool, mount = Path("bin/quota"), storage.mount_of(Path.cwd())
    tool.parent.mkdir()
    table = f"     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace\n{mount.source} 51200000* 50000000 52428800 1790000000 9000 0 0 0\n"
    tool.write_text(f"#!/bin/sh\ncat <<'EOF'\nDisk quotas for user me (uid 1000): \n{table}EOF\n")
    tool.chmod(0o755)
    os.environ["PATH"] = f"{tool.parent.absolute()}:{os.environ['PATH']}"
    return case


LOGIN = [
    ("account of another", scheduler.access, {"partition": "lessons", "account": "p1"}, {}, None, "--account p1: partition lessons admits teach only"),
    ("QOS of another", scheduler.access, {"partition": "longs", "qos": "short"}, {}, None, "--qos short: partition longs admits long only"),
    ("over the time limit", scheduler.partition, {"partition": "brief", "walltime": "00:20:00"}, {}, None, "partition brief allows 00:10:00"),
    ("more GPUs than a node has", scheduler.partition, {"gpus_per_node": 16}, {}, None, "has 8 GPUs a node"),
    ("partition down", scheduler.partition, {"partition": "shut"}, {}, None, "partition shut is down"),
    ("no such feature", scheduler.rehearsal, {"constraint": "a10"}, {}, None, "Invalid feature specification"),
    ("no requeue", scheduler.requeue, {}, {}, never_requeues, "JobRequeue=0"),
    ("controller's clock", scheduler.clock, {}, {}, shifted, "the controller's clock is +3"),
    ("SBATCH_ in the shell", scheduler.overrides, {}, {}, overridden, "SBATCH_PARTITION=long is set"),
    ("stale profile", scheduler.profile, {}, {"checked": "2025-01-01"}, None, "was checked"),
    ("account is missing", scheduler.profile, {}, {"account": {"form": "project_<number>", "required": True}}, None, "no account is given"),
    ("what the site never takes", scheduler.rules, {"mem": "10G"}, {"never": {"mem": "it comes with the GPUs"}}, None, "takes no --mem"),
    ("over quota", storage.quota, {}, {}, over_quota, "52 of 54 GB on"),
    ("no Python", software.python, {"rank_python": "/nowhere/python3"}, {}, None, "/nowhere/python3: No such file or directory"),
    ("a Python for other processors", software.python, {}, {"architecture": "aarch64"}, None, "the nodes of site are aarch64"),
]  # fmt: skip
RECIPES = [
    ("no such partition", ["job.partition=bach"], "--partition bach: there is no such partition"),
    ("key", ["optim.lrr=1"], "unknown key optim.lrr"),
    ("tokenizer is missing", ["model.tokenizer=gone"], "gone"),
    ("data cannot be read", ["data.train=[dangling.jsonl]"], "dangling.jsonl"),
]
MOUNTS = {"size=64k": "No space left on device", "ro": "Read-only file system", "nr_inodes=50": "more files"}


@pytest.mark.parametrize(
    ("check", "job", "profile", "plant", "said"), [row[1:] for row in LOGIN], ids=[row[0] for row in LOGIN]
)
def test_planted_on_the_login_node(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Check,
    job: dict[str, Any],
    profile: dict[str, Any],
    plant: Callable[[Case], Case] | None,
    said: str,
) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    patient = case(here, job, profile)
    found = wrong(plant(patient) if plant else patient, check)
    assert said in found[0].what, found
    assert all(finding.why and finding.mend for finding in found)
    assert len(found) == 1


def test_planted_nodes_and_folders(here: Path, site: Pocket) -> None:
    with drained(site, "node2"):
        (found,) = wrong(case(here, {}, {}), scheduler.nodes)
        assert "1 of 2 nodes of batch can take jobs, 2 are asked for: node2 is idle+drain (broken fan" in found.what
        assert not wrong(case(here, {"nodes": 1}, {}), scheduler.nodes)
    looks = f"""
import json, subprocess, sys
from pathlib import Path
from slurm.sites import cluster
from slurm.config import JobConfig
from slurm.doctor import storage
from slurm.doctor.case import Case, examine
case = Case(cluster.find("local"), JobConfig(name="x"), Path("full"))
for options in {list(MOUNTS)}:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "full"], check=True)
    print(json.dumps([f.what for f in examine(case, [storage.run_folder, storage.room]) if f.level == "error"]))
    subprocess.run(["umount", "full"], check=True)
"""
    (here / "full").mkdir()
    namespace = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*namespace, sys.executable, "-c", looks], env=env, capture_output=True, text=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(MOUNTS), done.stderr
    for said, lines in zip(MOUNTS.values(), told, strict=True):
        assert any(said in line for line in lines), (said, lines)


def test_planted_in_a_recipe(here: Path) -> None:
    recipe = write_recipe(here)
    (here / "dangling.jsonl").symlink_to("gone.jsonl")
    cluster = clusters.find("auto")
    for what, words, said in RECIPES:
        args = Namespace(words=[str(recipe), *words], runs_dir=str(here / "runs"))
        told = partial(launch.told, args, {})
        _, (found,) = resolved(told, launch.checked, args, cluster)
        assert found.level == "error" and said in found.what, (what, found)


# --- the nodes ------------------------------------------------------------------------------------------


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, str]]]:
    code = launch.main(["doctor", *words, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code
    return code, told["findings"]


def test_a_cluster_that_is_well(here: Path, site: Pocket, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(here)
    assert launch.main(["prepare", str(recipe)]) == 0
    capsys.readouterr()
    code, found = doctor(capsys, str(recipe), "--nodes", "2", "--gpus", "1", "--prove-requeue")
    assert (code, [one for one in found if one["level"] != "ok"]) == (0, [])
    said = {one["check"]: one["what"] for one in found}
    assert "the sum is right; gloo" in said["all-reduce"] and "there is no nvidia-smi" in said["GPUs"]
    assert said["requeue"] == "the job was requeued, and its ranks came again"
    assert said["signals"] == "USR1 from Slurm has reached all 2 ranks"
    assert not list((here / "runs").glob("doctor-*"))


SMI = """\
#!/bin/sh
odd=0; [ "$SLURMD_NODENAME" = node2 ] && odd=1
case "$1" in
--list-gpus) echo "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5a7d1c0e-1111-2222-3333-444455556666)" ;;
*) echo "GPU-5a7d1c0e-1111-2222-3333-444455556666, 550.54.1$odd, $((3 * odd))" ;;
esac
"""
SICK = """\
import os, signal, time
if os.environ.get("SLURMD_NODENAME") == "node2":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    clock = time.time
    time.time = lambda: clock() + 300
"""
NODES = {
    "GPUs": ["is there twice", "3 uncorrected memory errors", "drivers differ"],
    "clocks": ["the farthest from the others: node2 (+300"],
    "addresses": ["node1 finds only 127.0.1.1 for its own name"],
    "scratch": ["node1: /proc: "],
    "signals": ["1 of 2 ranks have not heard USR1 (node2)"],
    "requeue": ["Slurm has it as Requeue=0"],
    "software": ["nvidia-smi shows GPUs, torch none"],
}


def test_planted_on_the_nodes(
    here: Path, site: Pocket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one job: a driver's tool, a site's sbatch and Python as they would be there."""
    sbatch = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    for name, text in {"nvidia-smi": SMI, "sbatch": f'#!/bin/sh\nexec {sbatch} --no-requeue "$@"\n'}.items():
        (here / name).write_text(text)
        (here / name).chmod(0o755)
    (here / "sitecustomize.py").write_text(SICK)
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.setattr("slurm.doctor.job.HEARD_SECONDS", 2.0)
    monkeypatch.setattr("slurm.doctor.command.SOFTWARE", [])
    hosts = site.layout.hosts
    healthy = hosts.read_text()
    hosts.write_text(
        healthy.replace(f"{site.layout.address('node1')} node1", "127.0.1.1 node1")
    )  # in place: it is mounted
    try:
        code, found = doctor(capsys, "--nodes", "2", "--gpus", "1", "job.environment.TMPDIR=/proc")
    finally:
        hosts.write_text(healthy)
    assert code == 2
    told = [one for one in found if one["level"] != "ok"]
    for check, lines in NODES.items():
        for line in lines:
            assert any(one["check"] == check and line in one["what"] for one in told), (check, line, told)
    assert {one["check"] for one in told} == {*NODES} and all(one["why"] and one["mend"] for one in told)


def test_no_python_on_the_nodes(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.doctor.command.SOFTWARE", [])
    code, found = doctor(capsys, "--nodes", "2", "--gpus", "1", "job.rank_python=/nowhere/python3")
    told = {one["check"]: one["what"] for one in found if one["level"] == "error"}
    assert code == 2 and "0 of 2 ranks came up" in told["ranks"] and "/nowhere/python3" in json.dumps(found), found


# --- a profile, and what each attempt looks at -----------------------------------------------------------


def test_a_profile_is_drafted(
    here: Path, site: Pocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here))
    assert launch.main(["doctor", "--write-profile", "ours"]) == 0
    profile = read_profile("ours")
    assert (profile.cluster_name, profile.gpus_per_node, profile.cpus_per_node) == (site.name, 8, 64)
    assert profile.job == {"partition": "batch"} and str(profile.partitions["brief"].max_walltime) == "00:10:00"
    assert "# internet:" in (here / "outlast" / "clusters" / "ours.yaml").read_text()
    assert clusters.find("auto").profile.name == "ours"
    assert launch.main(["doctor", "--write-profile", "ours"]) == 78
    assert "remove it first" in capsys.readouterr().err


LOST = """\
#!/bin/sh
[ -e {folder}/lost ] || echo $SLURMD_NODENAME >{folder}/lost
echo "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5a7d1c0e-1111-2222-3333-444455556666)"
if [ "$(cat {folder}/lost)" = "$SLURMD_NODENAME" ]; then
    echo "Unable to determine the device handle for GPU0000:46:00.0: GPU is lost.  Reboot the system to recover this GPU"
    exit 15
fi
echo "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-5a7d1c0e-1111-2222-3333-444455557777)"
"""


def test_a_node_that_has_lost_a_gpu_is_left(pocket: Pocket, launch: Launch, tmp_path: Path) -> None:
    """Named before any rank starts there, and the next job goes elsewhere."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(LOST.format(folder=tmp_path))
    tool.chmod(0o755)
    run = launch("--gpus", "2", "job.poll_seconds=0.5", program="pass", PATH=f"{tmp_path}:{os.environ['PATH']}")
    over(run)
    assert causes(run) == ["node_failure", "done"], job_log(run)
    first, second = run.attempts()
    bad = (tmp_path / "lost").read_text().strip()
    assert first["failed_on"] == bad and first["reason"] == f"{bad} is unfit: 1 of its 2 GPUs answer"
    assert bad not in second["hosts"] and not (run.attempt_dir(1) / "rank-0000.log").exists()
