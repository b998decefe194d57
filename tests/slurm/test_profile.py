"""Profiles: a user's own, mistakes in them, and what they have a submission say."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from textwrap import dedent

import pytest

import launch
from settings import ConfigError, dump_yaml
from slurm import commands
from slurm.config import JobConfig
from slurm.sites.cluster import find
from slurm.sites.profile import Evidence, read_profile
from slurm.sites.site_rules import notes
from slurm.walltime import Walltime
from tests.slurm.test_sites import ROOT, a_site, flags, resolve_job, resolved, script


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of profiles."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "outlast" / "clusters"
    folder.mkdir(parents=True)
    return folder


def test_a_users_own_profile(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "site", lambda: None)
    (own / "lumi-g.yaml").write_text("like: lumi-g\njob: {account: project_1, mail_user: me@example.org}\n")
    job = resolve_job([({"name": "sft", "nodes": 2}, "")], find("lumi-g"))
    assert (job.account, job.mail_user, job.mem, job.cluster) == ("project_1", "me@example.org", "480G", "lumi-g")
    ours = own / "ours.yaml"
    ours.write_text("gpus_per_node: 4\njob: {gpus_by: gres, gpu_type: a100}\n")
    assert "gres=gpu:a100:4" in flags(script(resolve_job([({"name": "sft"}, "")], find("ours"))))
    monkeypatch.chdir(own)
    monkeypatch.setattr(commands, "site", lambda: a_site("pocket-1"))
    assert find("./ours.yaml").live and not find("ours").live  # a file that is named is for the Slurm that is here
    monkeypatch.setattr(commands, "site", lambda: None)
    by_path = resolve_job([({"name": "sft"}, "")], find("./ours.yaml"))
    assert by_path.cluster == str(ours)  # `resume` finds it from anywhere


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gpus_per_nodes: 4", "unknown key gpus_per_nodes: did you mean gpus_per_node?"),
        ("gpus_per_node: many", "gpus_per_node=many: expected int | null, got str"),
        ("architecture: arm64", "architecture=arm64: did you mean aarch64?"),
        ("partitions: {gpu: {max_walltim: '1:00:00'}}", "unknown key partitions.gpu.max_walltim: did you mean partitions.gpu.max_walltime?"),
        ("partitions: {gpu: {max_walltime: '24:00'}}", "partitions.gpu.max_walltime=24:00: a walltime is written [D-]HH:MM:SS, for example 24:00:00 or 2-00:00:00"),
        ("mem_per_gpu: 60", "mem_per_gpu=60: expected str | null, got int"),
        ("checked: yesterday", "checked=yesterday: invalid RFC3339 encoded date"),
        ("account: {required: true}", "account.form is missing: give it"),
        ("job: {cpus_per_gpus: 7}", "job: unknown key cpus_per_gpus: did you mean cpus_per_gpu?"),
        ("gpus_per_node: 4\nevidence: {gpus_per_nod: o DOC}", "evidence.gpus_per_nod: there is no such fact: did you mean gpus_per_node?"),
        ("gpus_per_node: 4\nevidence: {gpus_per_node: x DOC}", "evidence.gpus_per_node=x DOC: evidence is written GRADE [DATE] SOURCE[, SOURCE][: WHY], with a grade of o, e, m or u"),
        ("gpus_per_node: 4\nsources: {DOCS: x}\nevidence: {gpus_per_node: o DOC}", "evidence.gpus_per_node=o DOC: unknown source DOC: did you mean DOCS?"),
        ("like: lumi", "like=lumi: there is no such profile: did you mean lumi-g?"),
    ],
)  # fmt: skip
def test_mistakes_in_a_profile(own: Path, text: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "ours.yaml"
    path.write_text(text)
    assert launch.main(["--cluster", "ours", "--dry-run", "--", "train"]) == 78
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"outlast: {path}: {line}")


def test_evidence() -> None:
    plain, dated = Evidence.parse("u OT"), Evidence.parse("e 2026-01-02 OT, WX: seen: twice")
    assert (plain.grade, plain.sources, dated.grade, dated.sources) == ("u", ["OT"], "e", ["OT", "WX"])


def test_what_a_user_should_know() -> None:
    lumi, frontier = read_profile("lumi-g"), read_profile("frontier")
    job = resolved("lumi-g")
    assert notes(job, lumi, date(2027, 5, 22)) == []  # 180 days
    assert notes(job, lumi, date(2027, 5, 23)) == [
        "the profile lumi-g was checked 181 days ago, on 2026-11-23: compare it with the site's documentation"
    ]
    without = JobConfig("x", gpus_per_node=6, walltime=Walltime.parse("01:00:00"))
    assert notes(without, frontier, date(2026, 11, 24)) == [
        "no account is given, and frontier wants one (the project): -A, or SBATCH_ACCOUNT",
        "frontier gives nodes whole, and 2 of 8 GPUs a node would idle: take --gpus 8",
    ]


def test_an_old_profile_is_told_once(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "ours.yaml").write_text(dump_yaml({"gpus_per_node": 4, "checked": "2020-01-01"}))
    assert launch.main(["--cluster", "ours", "--dry-run", "--", "train"]) == 0
    assert capsys.readouterr().err.count("the profile ours was checked") == 1


def test_the_profiles_of_the_page(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "site", lambda: None)
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "docs" / "sites.md").read_text(), re.MULTILINE)
    like, whole = (dedent(block) for block in blocks if re.match(r" +(like|description):", block))
    (own / "like.yaml").write_text(like)
    (own / "whole.yaml").write_text(whole)
    assert resolve_job([({"name": "sft"}, "")], find("like")).mail_user == "me@example.org"
    job = resolve_job([({"name": "sft", "nodes": 20}, "")], find("whole"))  # its 16 nodes are not confirmed
    assert {"gres=gpu:a100:4", "mem=480G", "cpus-per-task=16", "partition=gpu"} <= {*flags(script(job))}
    with pytest.raises(ConfigError, match="--exclude n1: whole takes no --exclude: jobs that avoid"):
        resolve_job([({"name": "sft", "exclude": "n1"}, "")], find("whole"))
