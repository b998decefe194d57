"""What the doctor makes of what nodes, a Python and a site's tools tell: each fault by its own words, a healthy one by none."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm.config import JobConfig
from slurm.doctor import nodes, software, storage
from slurm.doctor.case import Case
from slurm.doctor.exam import Exam
from slurm.rundir import RunDir
from slurm.sites.cluster import Cluster
from slurm.sites.profile import Profile
from tests.slurm.conftest import Tool

Report = dict[str, Any]


def card(host: str, number: int) -> dict[str, Any]:
    return {"uuid": f"GPU-{host}-{number}", "driver": "570.1", "ecc": 0}


def report(host: str, rank: int) -> Report:
    """As slurm's probe and the trainer's write it, of a node of two GPUs with nothing wrong."""
    return {
        "host": host,
        "ready": True,
        "gpus": {"listed": [card(host, 0), card(host, 1)]},
        "uuid": f"GPU-{host}-{rank % 2}",
        "devices": 1,
        "python": "3.11.7",
        "torch": "2.13.0",
        "backend": "nccl",
        "gb_per_s": 40.0,
        "sum_is_right": True,
        "clock": 1000.0,
        "addresses": ["10.0.0.1"],
        "scratch": {"folder": "/tmp", "free_gb": 100},
        "heard": True,
    }


def exam(tmp_path: Path, **changes: Any) -> Exam:
    job = JobConfig(name="doctor", nodes=2, gpus_per_node=2)
    reports = [report(host, rank) for rank, host in enumerate(("n1", "n1", "n2", "n2"))]
    return Exam(job, RunDir(tmp_path), reports, **{"signalled": True, "requeue_allowed": True, **changes})


def found(told: Exam) -> list[str]:
    """`level check: what` of all that is not well."""
    each = (one for look in nodes.NODES for one in look(told))
    return [f"{one.level} {one.check}: {one.what}" for one in each if one.level != "ok"]


def test_two_healthy_nodes(tmp_path: Path) -> None:
    well = exam(tmp_path)
    assert found(well) == []
    said = [one.what for look in nodes.NODES for one in look(well)]
    assert "4 of 2 nodes, all different" in said and "USR1 from Slurm has reached all 4 ranks" in said


def of_node_2(**changes: Any) -> Callable[[Exam], None]:
    def go(told: Exam) -> None:
        for one in told.reports[2:]:
            one |= changes

    return go


def its_cards(**changes: Any) -> Callable[[Exam], None]:
    return of_node_2(gpus={"listed": [{**card("n2", 0), **changes}, card("n2", 1)]})


def one_rank_away(told: Exam) -> None:
    told.reports[3] = {"host": "n2", "gpus": {}, "heard": True, "error": "OSError: Stale file handle"}
    told.words = ["srun: error: n2: task 3: Exited with exit code 1", "bash: module: command not found"]


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (one_rank_away, "error ranks: 3 of 4 ranks came up: n2: OSError: Stale file handle | bash: module: command not found"),
        (lambda told: told.record.update(unfit=True, failed_on="n2", reason="n2: 1 of 2 GPUs"), "error node: n2: 1 of 2 GPUs"),
        (of_node_2(gpus={"listed": [card("n2", 0)]}), "error GPUs: n2 shows 1 of 2 GPUs"),
        (of_node_2(gpus={"error": "NVML: Unknown Error"}), "warning GPUs: n2: nvidia-smi: NVML: Unknown Error"),
        (its_cards(ecc=3), "error GPUs: n2: GPU-n2-0 has 3 uncorrected memory errors"),
        (its_cards(driver="550.0"), "warning GPUs: drivers differ: n1 570.1, n2 550.0"),
        (of_node_2(uuid="GPU-n2-0"), "error GPUs: GPU-n2-0 is there twice (n2)"),
        (of_node_2(torch="2.12.0"), "warning software: n1: Python 3.11.7, torch 2.13.0, n2: Python 3.11.7, torch 2.12.0"),
        (of_node_2(devices=0), "error software: n2: nvidia-smi shows GPUs, torch none"),
        (of_node_2(sum_is_right=False), "error all-reduce: nccl: the sum is wrong"),
        (of_node_2(gb_per_s=0.1), "warning all-reduce: nccl: 0.1 GB/s for each of 4 ranks: slow"),
        (of_node_2(clock=1010.0), "warning clocks: 10.0 s between the nodes; the farthest from the others: n2 (+10.0 s)"),
        (of_node_2(clock=900.0), "error clocks: 100.0 s between the nodes; the farthest from the others: n1 (+100.0 s)"),
        (of_node_2(addresses=["127.0.1.1"]), "warning addresses: n2 finds only 127.0.1.1 for its own name"),
        (of_node_2(addresses=[]), "warning addresses: n2 finds no address for its own name"),
        (of_node_2(scratch={"folder": "/tmp", "error": "read-only"}), "error scratch: n2: /tmp: read-only"),
        (of_node_2(scratch={"folder": "/tmp", "free_gb": 1}), "warning scratch: n2: /tmp has 1 GB left"),
        (of_node_2(heard=False), "error signals: 2 of 4 ranks have not heard USR1 (n2)"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_node(tmp_path: Path, harm: Callable[[Exam], None], line: str) -> None:
    told = exam(tmp_path)
    harm(told)
    assert found(told) == [line]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"requeue_allowed": False}, "warning requeue: the job was sent with --requeue, and Slurm has it as Requeue=0"),
        ({"requeued": False, "refused": "Requested operation is presently disabled"}, "warning requeue: scontrol requeue: Requested operation is presently disabled"),
        ({"requeued": False}, "warning requeue: scontrol requeue: its ranks have not come again"),
    ],
)  # fmt: skip
def test_a_requeue_that_does_not_work(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    assert found(exam(tmp_path, **changes)) == [line]


def case(tmp_path: Path, gpu: str = "") -> Case:
    return Case(Cluster(Profile("ours", gpu_model=gpu), ""), JobConfig(name="x"), tmp_path)


def test_a_python_that_does_not_fit(tmp_path: Path) -> None:
    old = [{"name": "torch", "wanted": ">=2.13", "version": "1.9", "fits": False}]
    (one,) = software._packages(old)
    assert (one.level, one.what, one.mend) == ("error", "torch is 1.9, >=2.13 is needed", "pip install 'torch>=2.13'")
    (broken,) = software._torch(case(tmp_path), {"error": "ImportError: libcudart.so.12"})
    assert broken.what == "it cannot be imported: ImportError: libcudart.so.12"
    built: Report = {"version": "2.13.0", "cuda": None, "hip": None}
    (blind,) = software._torch(case(tmp_path, "H100"), built)
    assert blind.level == "error" and blind.what == "2.13.0, built for the CPU alone; ours has H100"
    (amd,) = software._torch(case(tmp_path, "MI250X"), {**built, "cuda": "12.6"})
    assert amd.level == "error" and "built for ROCm" in amd.mend
    assert next(iter(software._torch(case(tmp_path, "H100"), {**built, "cuda": "12.6"}))).level == "ok"


def test_room_for_checkpoints_is_what_submit_asks_for_and_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    config = "checkpoint: {keep: 5, keep_best: 1}\n"
    levels = []
    for times in (0.9, 1.5, 2.2, 6.5, 7.5):  # as many checkpoints find room
        told = replace(case(tmp_path), config=config, checkpoint=free / times)
        (space,) = [one for one in storage.room(told) if one.check == "free space" and "runs" in one.what]
        levels.append(space.level)
    assert levels == ["error", "error", "warning", "warning", "ok"]


LFS = """\
echo 'Disk quotas for usr me (uid 1000):'
echo '     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace'
echo '/lustre/work  {kbytes}  80000000 100000000 -  10  900000 1000000       -'
"""


@pytest.mark.parametrize(("kbytes", "level"), [(10_000_000, "ok"), (97_000_000, "warning"), (100_000_000, "error")])
def test_a_quota_that_is_nearly_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool, kbytes: int, level: str
) -> None:
    tool("lfs", LFS.format(kbytes=kbytes))
    work = storage.Mount("/lustre/work", "lustre", "10.0.0.1@o2ib:/work")
    monkeypatch.setattr(storage, "mount_of", lambda path: work)
    space, files = storage.quota(case(tmp_path))
    assert (space.level, files.level) == (level, "ok")
    assert f"of 102 GB on {work.folder} are used" in space.what
