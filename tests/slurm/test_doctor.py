"""What the doctor says, and what a shim looks at before its ranks start: without a cluster."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from settings import ConfigError
from slurm.causes.cause import Next, bad_nodes, decide
from slurm.doctor import finding, storage
from slurm.doctor.case import refused
from slurm.environment import Task, task
from slurm.node import preflight
from slurm.node.preflight import look
from slurm.step import Step
from trainer import software

NODE = Task(node_rank=1, rank=1, local_rank=0, host="n1", launch_address=None, cpus=None)


def step(folder: Path, **more: float) -> Step:
    (folder / "logs" / "attempt-0001").mkdir(parents=True, exist_ok=True)
    return Step(str(folder), 1, "srun", 2, 1, ("train",), **more)  # type: ignore[arg-type]


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def listed(count: int) -> str:
    return "\n".join(f"echo 'GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-0000-{i})'" for i in range(count))


@pytest.mark.parametrize(
    ("script", "unfit", "notes"),
    [
        (listed(4), None, 0),
        (listed(8), None, 0),  # where the site hides none
        (listed(3), "3 of its 4 GPUs answer", 0),
        (f"{listed(3)}\necho 'Unable to determine the device handle for GPU0000:46:00.0: GPU is lost.'; exit 15", "3 of its 4 GPUs answer", 0),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", None, 1),
        ("exec sleep 5", None, 1),
    ],
    ids=["all", "more", "fewer", "lost", "no driver", "silent"],
)  # fmt: skip
def test_gpus_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, unfit: str | None, notes: int
) -> None:
    if "sleep" in script:  # the others have the time that they need on a busy machine
        monkeypatch.setattr(preflight, "SECONDS", 0.3)
    smi(tmp_path, monkeypatch, script)
    found = look(step(tmp_path), replace(NODE, gpus=4))
    assert (found.unfit, len(found.notes)) == (unfit, notes)


def test_a_healthy_node_costs_no_process_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    found = look(step(tmp_path, started=time.time()), replace(NODE, memory_mb=1))
    assert (found.unfit, found.notes) == (None, [])
    assert not list((tmp_path / "logs" / "attempt-0001").iterdir())


def test_what_is_odd_is_a_note(tmp_path: Path) -> None:
    found = look(step(tmp_path, started=time.time() - 600), replace(NODE, memory_mb=1 << 40))
    assert found.unfit is None and "memory are free" in found.notes[0] and "+600 s" in found.notes[1]


def test_a_folder_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(step(tmp_path), run_dir=str(tmp_path / "gone"))
    assert look(gone, NODE).unfit == f"{tmp_path / 'gone'} takes no file here: No such file or directory"

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slurm.node.preflight.os.fsync", full)  # all nodes are alike then: it is no node's fault
    found = look(step(tmp_path), NODE)
    assert found.unfit is None and "No space left" in found.notes[0]


def test_the_gpus_of_a_task() -> None:
    told = {"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert task(told).gpus == 4
    assert task({**told, "CUDA_VISIBLE_DEVICES": "2"}).gpus == 1  # the site binds each task to its own
    assert task({"SLURM_GPUS_ON_NODE": "4"}).gpus == 4 and task({"CUDA_VISIBLE_DEVICES": "0"}).gpus is None


def test_an_unfit_node_is_left_at_once_but_not_for_ever() -> None:
    one = {"cause": "node_failure", "unfit": True, "failed_on": "n1", "end": 0.0, "first_step": 5, "committed_step": 5}
    assert bad_nodes([one], 1.0) == ["n1"] and bad_nodes([{**one, "unfit": False}], 1.0) == []
    assert decide([one]).next is Next.NEXT_JOB and decide([one] * 3).next is Next.STOP
    assert decide([{**one, "unfit": False}] * 3).next is Next.NEXT_JOB


# --- what the doctor says -------------------------------------------------------------------------------


LUSTRE = """\
Disk quotas for usr me (uid 1000):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
/lustre/a/very/long/name
                [90000000*]  80000000 100000000 5d23h59m  950000  900000 1000000       -
"""


def test_quotas() -> None:
    space, files = storage.parse_quota(LUSTRE)
    assert (space.where, round(space.share, 2), space.what) == ("/lustre/a/very/long/name", 0.9, "GB")
    assert (files.used, files.limit, files.what) == (950000, 1000000, "files")
    assert storage.parse_quota("Disk quotas for user me (uid 1000): none\n") == []
    lustre = storage.quota_command(storage.Mount("/lustre", "lustre", "10.0.0.1@o2ib:/work"))
    assert lustre and lustre[0] == "lfs" and storage.quota_command(storage.Mount("/x", "tmpfs", "tmpfs")) is None


def test_the_file_system_of_a_path(tmp_path: Path) -> None:
    told = subprocess.run(
        ["findmnt", "--noheadings", "--output=TARGET,FSTYPE", "--target", str(tmp_path)], capture_output=True, text=True
    )
    mount = storage.mount_of(tmp_path)
    assert told.stdout.split() == [mount.folder, mount.kind]
    assert storage.mount_of(Path("/proc/self")).kind == "proc"


def test_how_it_is_said() -> None:
    said = [finding.ok("clock", "fine"), finding.warning("quota", "nearly full " * 12, "no room", "rm -r old")]
    assert finding.exit_code(said[:1]) == 0 and finding.exit_code(said) == 1
    assert finding.exit_code([*said, finding.error("x", "y", "z", "w")]) == 2
    lines = finding.text(said[1]).splitlines()
    assert all(len(line) <= finding.WIDTH for line in lines) and lines[-1].split(maxsplit=1) == ["mend", "rm -r old"]
    assert finding.verdict(said) == "1 warning, 1 ok" and finding.verdict(said[:1]).startswith("healthy: 1 look")
    advice: Callable[[str], str] = lambda line: refused("x", ConfigError(line)).mend  # noqa: E731
    assert advice("--partition bach: there is none: did you mean batch?") == "did you mean batch?"
    assert "launch.py --help" in advice("data.train: there is no file x")


def test_versions_of_packages() -> None:
    torch, none, old = software.packages(["torch>=2,<3", "no-such-package>=1", "msgspec>=99"])
    assert torch["fits"] and none["version"] is None and not none["fits"] and old["version"] and not old["fits"]
