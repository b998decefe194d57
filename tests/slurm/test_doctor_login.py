"""What the doctor finds on the login node, where a site's commands answer as they do when something is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm import commands
from slurm.config import JobConfig
from slurm.doctor import scheduler, storage
from slurm.doctor.case import Case, examine
from slurm.doctor.finding import Finding
from slurm.sites.cluster import Cluster
from slurm.sites.partition import Partition
from slurm.sites.profile import Profile, Scratch
from slurm.sites.site import Site
from slurm.walltime import Walltime
from tests.slurm.conftest import Tool

SITE = Site("hill", (24, 5), ages=True, largest_array=1000, enforces_limits=True, accounts=True)
OPEN = Partition("gpu", default=True, max_walltime=Walltime(hours=24))


@pytest.fixture(autouse=True)
def partitions(monkeypatch: pytest.MonkeyPatch) -> list[Partition]:
    found = [OPEN]
    monkeypatch.setattr(commands, "partitions", lambda: found)
    return found


def case(runs: Path, site: Site | None = SITE, **job: Any) -> Case:
    cluster = Cluster(Profile("hill"), "by its name", site=site)
    return Case(cluster, JobConfig(name="x", **job), runs)


def said(findings: Iterator[Finding]) -> list[str]:
    return [f"{one.level}: {one.what}" for one in findings]


# --- Slurm ----------------------------------------------------------------------------------------------


def test_a_login_node_without_slurm_is_an_error_where_a_cluster_was_meant(tmp_path: Path) -> None:
    nowhere = case(tmp_path, site=None)
    assert said(scheduler.slurm(nowhere)) == ["error: no Slurm of hill answers here (by its name)"]
    local = replace(nowhere, cluster=replace(nowhere.cluster, profile=Profile("local")), environ={})
    assert [one.level for one in scheduler.slurm(local)] == ["ok"]
    lost = replace(local, environ={"SLURM_CONF": "/gone/slurm.conf"})
    assert [one.level for one in scheduler.slurm(lost)] == ["error"]


@pytest.mark.parametrize(("version", "level"), [((24, 5), "ok"), ((19, 5), "warning"), ((31, 11), "warning")])
def test_a_slurm_of_which_nothing_is_known(tmp_path: Path, version: tuple[int, int], level: str) -> None:
    (one,) = scheduler.slurm(case(tmp_path, replace(SITE, version=version)))
    assert one.level == level and one.what.startswith(f"{version[0]}.{version[1]:02d} of the cluster hill answers")


@pytest.mark.parametrize(("ahead", "level"), [(2, "ok"), (-31, "warning"), (299, "error")])
def test_a_controller_whose_clock_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, level: str
) -> None:
    monkeypatch.setattr(commands, "site", lambda: replace(SITE, clock=1e9 + ahead))
    (one,) = scheduler.clock(replace(case(tmp_path), now=lambda: 1e9))
    assert one.level == level and (level == "ok" or f"{ahead:+d} s" in one.what)


def test_an_account_that_is_none_of_the_users(tmp_path: Path, tool: Tool) -> None:
    tool("sacctmgr", "[ $4 = associations ] && printf 'physics|normal,long\\nbio|normal\\n'")
    known = ["ok: account physics and QOS long may use the partition"]
    assert said(scheduler.access(case(tmp_path, account="physics", qos="long"))) == known
    wrong, _ = scheduler.access(case(tmp_path, account="chemistry"))
    assert (wrong.level, wrong.what) == ("error", "--account chemistry is none of yours")
    assert wrong.mend == "take --account bio or physics"
    tool("sacctmgr", "echo 'Access denied' >&2; exit 1")
    assert said(scheduler.access(case(tmp_path, account="chemistry")))[0].startswith("ok")  # Slurm itself will judge it


def test_a_partition_that_is_down_and_one_that_never_takes_the_job(tmp_path: Path, partitions: list[Partition]) -> None:
    (one,) = scheduler.partition(case(tmp_path, walltime=Walltime(hours=25)))
    assert one.level == "error" and "gpu" in one.what
    partitions[:] = [replace(OPEN, state="down")]
    assert said(scheduler.partition(case(tmp_path)))[0] == "warning: partition gpu is down"


@pytest.mark.parametrize(
    ("requeues", "by", "level"), [(True, "requeue", "ok"), (False, "chain", "warning"), (False, "requeue", "error")]
)
def test_a_slurm_that_requeues_nothing(tmp_path: Path, requeues: bool, by: str, level: str) -> None:
    (one,) = scheduler.requeue(case(tmp_path, replace(SITE, requeues=requeues), continue_by=by))
    assert one.level == level


def test_a_check_that_cannot_look_ends_no_other(tmp_path: Path) -> None:
    def breaks(case: Case) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/proc/mounts")
        yield

    first, *others = examine(case(tmp_path), [breaks, storage.run_folder])
    assert (first.check, first.level) == ("breaks", "warning") and "Permission denied" in first.what
    assert [one.level for one in others] == ["ok"]


# --- file systems ---------------------------------------------------------------------------------------


def test_a_run_folder_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = storage.run_folder(case(Path("/proc/1")))
    assert one.level == "error" and "--runs-dir" in one.mend
    now = time.time()
    monkeypatch.setattr(storage.time, "time", lambda: now + 7200)
    (late,) = storage.run_folder(case(tmp_path / "runs"))
    assert late.level == "warning" and "-7200 s from this host's" in late.what and not list(tmp_path.iterdir())


def test_a_quota_of_which_nobody_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Tool) -> None:
    monkeypatch.setattr(storage, "mount_of", lambda path: storage.Mount("/", "overlay", "overlay"))
    assert said(storage.quota(case(tmp_path))) == ["ok: no tool here tells of one on / (overlay)"]
    monkeypatch.setattr(storage, "mount_of", lambda path: storage.Mount("/work", "lustre", "10.0.0.1@o2ib:/work"))
    tool("lfs", "echo 'Disk quotas for usr me (uid 1000):'")
    assert said(storage.quota(case(tmp_path))) == ["ok: lfs names none on /work"]
    tool("lfs", "exec sleep 100")
    monkeypatch.setattr(storage, "_QUOTA_SECONDS", 0.2)
    assert said(storage.quota(case(tmp_path))) == ["warning: lfs has not answered"]


def test_a_mount_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, on a login node: its name is bytes, and its line is parted by spaces alone."""
    odd = b"99 1 0:99 / /tmp/a\x0b\xe9b rw - fuse.x /x rw\n"
    told = odd + Path("/proc/self/mountinfo").read_bytes()
    monkeypatch.setattr(Path, "read_bytes", lambda path: told)
    assert tmp_path.resolve().is_relative_to(storage.mount_of(tmp_path).folder)


def test_runs_on_a_scratch_that_is_purged(tmp_path: Path) -> None:
    def told(path: str, days: int | None) -> list[str]:
        one = case(tmp_path / "runs")
        profile = Profile("hill", scratch=Scratch(path, days))
        return said(storage.purge(replace(one, cluster=replace(one.cluster, profile=profile))))

    assert "for 30 days is removed there" in told(str(tmp_path), 30)[0]
    assert told(str(tmp_path), None) == []
    assert "is not on the site's scratch" in told("/scratch/$NOBODY/x", 30)[0]
    assert said(storage.purge(case(tmp_path))) == []


@pytest.mark.parametrize(
    ("kind", "boot", "level"), [("lustre", 0, "ok"), ("tmpfs", 0, "ok"), ("tmpfs", -99, "warning")]
)
def test_what_lies_in_this_hosts_memory_is_seen_by_no_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, boot: int, level: str
) -> None:
    stat = Path("/proc/stat").read_text()
    booted = int(stat.partition("btime ")[2].split()[0]) + boot
    words = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(booted))
    monkeypatch.setattr(commands, "nodes", lambda: [{"NodeName": "n1", "BootTime": words}])
    monkeypatch.setattr(storage, "mount_of", lambda path: storage.Mount("/x", kind, "x"))
    assert {one.level for one in storage.shared(case(tmp_path))} == {level}
