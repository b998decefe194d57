"""Profiles of sites: the script that each gets against golden files and a table of its own, and what is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launch
from settings import ConfigError, read_yaml, to_plain
from slurm import commands
from slurm.config import JobConfig
from slurm.environment import Layout, promised
from slurm.script import submission_text
from slurm.sites.cluster import Cluster, find, with_continuation
from slurm.sites.partition import Partition
from slurm.sites.profile import PROFILES, Evidence, Profile, facts, read_profile
from slurm.sites.site import Site
from slurm.sites.site_rules import check, fitted, spoken
from slurm.submission import Layers, asked_job
from trainer.plan.devices import device

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "sites"
OWN = ("generic", "local", "pocket")  # of no site
SITES = sorted({path.stem for path in PROFILES.glob("*.yaml")} - {*OWN})

# Written from the sites' documentation and their users' scripts, not from the profiles: what a script of two full nodes
# must ask for, and what it must not have. No two options may ask for GPUs, so that the others are among the latter.
_NO_GPU_FLAG = ("gres", "gpus-per-task", "gpus-per-node", "gpus")
FACTS = {
    "lumi-g": (("gpus-per-node=8", "mem=480G", "partition=standard-g", "open-mode=append"), ("gres",)),
    "frontier": (("nodes=2", "network=disable_rdzv_get", "time=02:00:00"), _NO_GPU_FLAG),
    "juwels-booster": (("gres=gpu:4", "threads-per-core=1", "partition=booster"), ("gpus-per-node",)),
    "jupiter": (("gres=gpu:4", "exclusive"), ("gpus-per-node",)),
    "jureca-dc": (("gres=gpu:4",), ("gpus-per-node",)),
    "leonardo-booster": (("gres=gpu:4", "partition=boost_usr_prod"), ("gpus-per-node",)),
    "marenostrum5-acc": (("gres=gpu:4", "exclusive"), ("gpus-per-node", "mem")),
    "jean-zay-h100": (("constraint=h100", "gres=gpu:4", "hint=nomultithread", "account=p1234@h100", "time=20:00:00"), ("gpus-per-node",)),
    "jean-zay-a100": (("constraint=a100", "gres=gpu:8", "hint=nomultithread", "account=p1234@a100", "time=20:00:00"), ("gpus-per-node",)),
    "snellius-h100": (("gpus-per-node=4", "partition=gpu_h100"), ("gres",)),
    "perlmutter": (("constraint=gpu", "gpus-per-node=4", "gpu-bind=none", "account=p1234_g", "qos=regular", "cpus-per-task=32"), ("gres",)),
    "alps-clariden": (("ntasks-per-node=4", "gpus-per-task=1"), ("gres", "gpus-per-node")),
    "isambard-ai": (("gpus-per-node=4",), ("gres",)),
    "delta": (("gpus-per-node=4", "constraint=scratch", "requeue"), ("gres",)),
    "deltaai": (("gpus-per-node=4",), ("gres",)),
    "tacc-vista": (("nodes=2", "ntasks-per-node=1", "time=2-00:00:00"), (*_NO_GPU_FLAG, "mem", "export", "nodelist")),
    "tacc-lonestar6": (("nodes=2", "ntasks-per-node=3", "time=2-00:00:00"), (*_NO_GPU_FLAG, "mem", "export")),
    "alliance-narval": (("gpus-per-node=a100:4",), ("gres", "partition")),
    "alliance-h100": (("gpus-per-node=h100:4",), ("gres", "partition")),
    "karolina": (("gpus-per-node=8", "partition=qgpu"), ("gres",)),
    "meluxina": (("gpus-per-node=4", "partition=gpu"), ("gres",)),
    "bwunicluster3": (("gres=gpu:4", "partition=gpu_h100"), ("gpus-per-node",)),
    "harvard-kempner": (("gpus-per-node=4", "mem=0"), ("gres",)),
    "stanford-sherlock": (("partition=gpu", "gpus-per-node=4", "constraint=GPU_MEM:80GB"), ("gres",)),
    "princeton-della": (("gres=gpu:2", "constraint=gpu80"), ("gpus-per-node", "qos")),
    "umich-greatlakes": (("gpus-per-node=a40:4", "gpu_cmode=shared", "partition=spgpu"), ("gres",)),
    "mila": (("gpus-per-task=l40s:1",), ("gres", "gpus-per-node")),
    "csc-roihu": (("gres=gpu:gh200:4",), ("gpus-per-node", "mem")),
}  # fmt: skip


def a_site(name: str) -> Site:
    return Site(name, version=(24, 5), ages=False, largest_array=1001, enforces_limits=True, accounts=False)


@dataclass(frozen=True)
class VersionOnly(Cluster):
    """A cluster of which nothing is known but the version of its Slurm."""

    of: tuple[int, ...] = ()

    @property
    def version(self) -> tuple[int, ...]:
        return self.of


def resolve_job(layers: Layers, cluster: Cluster) -> JobConfig:
    """With the way in which it goes on there."""
    return with_continuation(asked_job(layers, cluster), cluster)


def resolved(name: str, **job: object) -> JobConfig:
    """A run of two nodes; of full ones where their GPUs are known."""
    profile = read_profile(name)
    count = {} if profile.gpus_per_node else {"gpus_per_node": 4}
    layer = {"name": "sft", "nodes": 2, "account": "p1234", **count, **job}
    return resolve_job([(layer, "command line")], Cluster(profile, ""))


def script(job: JobConfig) -> str:
    return submission_text(job, Path("/runs/sft"), Path("/env/bin/python"), Path("/home/me"))


def flags(text: str) -> list[str]:
    return re.findall(r"^#SBATCH --(.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", SITES)
def test_golden(name: str) -> None:
    text, path = script(resolved(name)), GOLDEN / f"{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", SITES)
def test_what_a_site_wants_is_asked_and_nothing_that_it_never_takes(name: str) -> None:
    found = flags(script(resolved(name)))
    ask, never = FACTS[name]
    assert set(ask) <= {flag.replace("'", "") for flag in found}
    options = {flag.partition("=")[0] for flag in found}
    assert not options & {*never}
    assert not options & read_profile(name).never.keys()
    assert len(options) == len(found)


def evidence_of(evidence: Mapping[str, Evidence], fact: str) -> Evidence | None:
    """Of a fact by its dotted key: its own, else that of the nearest section."""
    parts = fact.split(".")
    keys = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((evidence[key] for key in keys if key in evidence), None)


@pytest.mark.parametrize("name", SITES)
def test_each_fact_has_its_evidence_and_what_is_not_confirmed_is_no_flag(name: str) -> None:
    data, profile = read_yaml(PROFILES / f"{name}.yaml"), read_profile(name)
    assert profile.checked and profile.checked >= date(2026, 11, 23)
    for fact in facts(data):
        assert evidence_of(profile.evidence, fact), fact
    assert {source for evidence in profile.evidence.values() for source in evidence.sources} == {*profile.sources}
    for fact in (key for key, evidence in profile.evidence.items() if evidence.grade == "u"):
        left: object = {**data, "job": profile.job, "gpus_per_node": profile.gpus_per_node, "never": profile.never}
        if fact.partition(".")[0] in ("job", "never", "gpus_per_node"):
            for key in fact.split("."):
                left = left.get(key) if isinstance(left, dict) else None
            assert not left, fact


@pytest.mark.parametrize("name", SITES)
def test_a_sites_network_reaches_the_ranks(name: str) -> None:
    job, profile = resolved(name), read_profile(name)
    assert job.network.environment == profile.network.environment
    assert job.network.host_suffix == profile.network.host_suffix
    shown = dict(promised(Layout(2, 4), Path("/r"), {}, job.network.environment, job.network.host_suffix, {}))
    assert all(shown[key] == f"{value} (the site's)" for key, value in profile.network.environment.items())
    mine = resolved(name, network={"environment": {"NCCL_SOCKET_IFNAME": "mine"}})
    assert mine.network.environment == {**profile.network.environment, "NCCL_SOCKET_IFNAME": "mine"}
    again = fitted(spoken(to_plain(mine), profile), profile)
    assert again["network"]["environment"] == mine.network.environment
    assert "network" not in spoken(to_plain(job), profile)


def test_the_plan_knows_the_gpus_that_profiles_name() -> None:
    named = {gpu for name in SITES if (gpu := read_profile(name).gpu)}
    assert len(named) > 5 and all(device(gpu) for gpu in named)


def test_no_account_and_no_address_of_a_user_stands_in_a_profile() -> None:
    for name in SITES:
        assert not read_profile(name).job.keys() & {"account", "mail_user", "reservation", "environment"}, name
        assert "@" not in (PROFILES / f"{name}.yaml").read_text().replace('"@h100"', "").replace('"@a100"', ""), name


@pytest.mark.parametrize("name", SITES)
def test_a_dry_run_where_no_slurm_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(launch, "use_pocket", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert launch.main(["--cluster", name, "--nodes", "2", "--dry-run", "--", "train"]) == 0
    shown = capsys.readouterr()
    assert "nodes=2" in flags(shown.out) and f" on {name} (--cluster {name})" in shown.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "job", "line"),
    [
        ("tacc-vista", {"mem": "90G"}, "--mem 90G: tacc-vista takes no --mem: nodes are given whole, with all their memory"),
        ("tacc-vista", {"nodelist": "c1"}, "--nodelist c1: tacc-vista takes no --nodelist: jobs that name their nodes are deleted"),
        ("tacc-vista", {"sbatch": {"gres": "gpu:1"}}, "--sbatch gres=gpu:1: tacc-vista takes no --gres: its nodes come with their GPUs, and Slurm here knows no GPU options"),
        ("tacc-vista", {"gpus_by": "gres"}, "--gpus 1: tacc-vista takes no --gres: its nodes come with their GPUs, and Slurm here knows no GPU options"),
        ("princeton-della", {"qos": "gpu-short"}, "--qos gpu-short: princeton-della takes no --qos: it is derived from --time (gpu-test, gpu-short and others)"),
        ("juwels-booster", {"gpus_per_node": 8}, "--gpus 8: booster has 4 GPUs a node: --nodes 4 --gpus 4 is the same 16 ranks (4 nodes x 4 GPUs = 16 ranks)"),
        ("leonardo-booster", {"nodes": 65}, "--nodes 65: boost_usr_prod gives one job 64 nodes: take --nodes 64"),
        ("leonardo-booster", {"qos": "boost_qos_dbg", "walltime": "01:00:00"}, "--walltime 01:00:00: the QOS boost_qos_dbg allows 00:30:00: the run goes on by itself, take --walltime 00:30:00"),
        ("karolina", {"partition": "qgpu_big"}, "--nodes 2: qgpu_big gives one job no less than 17 nodes"),
        ("csc-roihu", {"partition": "gpumedium"}, "2 nodes x 4 GPUs = 8 ranks: partition gpumedium of csc-roihu gives one job 4 GPUs: take fewer, or another --partition"),
        ("leonardo-booster", {"qos": "boost_qos_dbg", "nodes": 3}, "--nodes 3: qos boost_qos_dbg of leonardo-booster gives one job 1 to 2 nodes: take another --nodes, or another --qos"),
        ("mila", {"launcher": "torchrun"}, "--launcher torchrun: mila gives each task its GPU, and this launcher is one task a node: take --launcher srun"),
        ("frontier", {"launcher": "torchrun"}, "--launcher torchrun: frontier gives each task its GPU, and this launcher is one task a node: take --launcher srun"),
    ],
)  # fmt: skip
def test_what_a_site_never_takes(name: str, job: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        resolved(name, **job)
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("name", "job", "has", "has_not"),
    [
        ("lumi-g", {"gpus_per_node": 4}, ["gpus-per-node=4", "mem=240G"], []),
        ("lumi-g", {"mem": "0", "partition": "small-g"}, ["mem=0", "partition=small-g"], ["mem=480G"]),
        ("delta", {"partition": "gpuA100x8"}, ["gpus-per-node=8", "mem=416G"], []),
        ("jean-zay-h100", {"account": "p1234@v100"}, ["account=p1234@v100"], []),
        ("perlmutter", {"account": "p1234_g", "constraint": "gpu&hbm80g"}, ["account=p1234_g", "constraint='gpu&hbm80g'"], []),
        ("jupiter", {"sbatch": {"exclusive": False}}, ["gres=gpu:4"], ["exclusive"]),
        ("jupiter", {"sbatch": {"gres": "nvme:1"}}, ["gres=gpu:4,nvme:1"], ["gres=nvme:1"]),
        ("jupiter", {"sbatch": {"gpus-per-node": "h100:4"}}, ["gpus-per-node=h100:4"], ["gres=gpu:4"]),
        ("generic", {"sbatch": {"gres": "gpu:a100:4"}}, ["gres=gpu:a100:4"], ["gpus-per-node=4"]),
        ("generic", {"sbatch": {"gres": "lustre:1"}}, ["gres=lustre:1", "gpus-per-node=4"], []),
    ],
)  # fmt: skip
def test_a_users_own_word_wins(name: str, job: dict[str, object], has: list[str], has_not: list[str]) -> None:
    found = flags(script(resolved(name, **job)))
    assert {*has} <= {*found} and not {*has_not} & {*found}


# Two options that a Slurm refuses together, and since when: from its change logs and its own answers, for these tests
# alone.
VERSIONS = [(20, 11), (22, 5), (23, 2), (23, 11), (24, 5), (24, 11), (25, 5), (25, 11), (26, 5)]
FORBIDDEN = [
    (r"gres=\S*gpu", r"gpus(-per-\w+)?=", (26, 5)),
    (r"cpus-per-gpu=", r"cpus-per-task=", (0,)),
    (r"tres-per-task=\S*cpu", r"cpus-per-task=", (23, 11)),
    (r"mem=", r"mem-per-[cg]pu=", (0,)),
    (r"mem-per-cpu=", r"mem-per-gpu=", (0,)),
    (r"ntasks-per-gpu=", r"(ntasks-per-node|gpus-per-task)=", (0,)),
    (r"exclusive", r"oversubscribe", (23, 2)),
]
RISKY = {
    "gres": st.sampled_from(["gpu:2", "gpu:a100:2", "nvme:1", "nvme:1,gpu:2"]),
    "gpus": st.just(4),
    "gpus-per-node": st.sampled_from(["2", "a100:2"]),
    "gpus-per-task": st.just(1),
    "gpus-per-socket": st.just(1),
    "tres-per-task": st.sampled_from(["gres/gpu:1", "cpu:2"]),
    "cpus-per-gpu": st.just(4),
    "mem-per-cpu": st.just("4G"),
    "mem-per-gpu": st.just("40G"),
    "ntasks-per-gpu": st.just(1),
    "exclusive": st.booleans(),
    "oversubscribe": st.booleans(),
}


@pytest.mark.parametrize("version", VERSIONS)
@given(
    table=st.fixed_dictionaries({}, optional=RISKY),
    by=st.sampled_from(["gpus-per-node", "gres", "gpus-per-task", "none"]),
    cores=st.none() | st.just(8),
    memory=st.sampled_from([{}, {"mem": "90G"}]),
    each=st.sampled_from([None, "60G"]),
)
@settings(max_examples=60)
def test_no_slurm_gets_two_options_that_it_refuses_together(
    version: tuple[int, int],
    table: dict[str, object],
    by: str,
    cores: int | None,
    memory: dict[str, str],
    each: str | None,
) -> None:
    job = {"name": "sft", "nodes": 2, "gpus_per_node": 2, "gpus_by": by, "cpus_per_gpu": cores, "sbatch": table}
    where = VersionOnly(Profile("c", mem_per_gpu=each), "", of=version)
    try:
        found = flags(script(resolve_job([({**job, **memory}, "")], where)))
    except ConfigError:
        assert table  # what we ask for ourselves is never refused
        return
    for one, other, since in FORBIDDEN:
        both = [any(re.match(pattern, flag) for flag in found) for pattern in (one, other)]
        assert not all(both) or version < since, found
    assert any(flag.startswith("ntasks=") for flag in found) and any(f.startswith("ntasks-per-node=") for f in found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SITES)
def test_a_sites_script_is_good_for_every_slurm(name: str, version: tuple[int, int]) -> None:
    job = resolved(name)
    check(job, read_profile(name), version)
    for one, other, _ in FORBIDDEN:
        assert not all(any(re.match(p, flag) for flag in flags(script(job))) for p in (one, other))


@pytest.mark.parametrize(
    ("version", "job", "line"),
    [
        (None, {"sbatch": {"cpus-per-gpu": 4}, "cpus_per_gpu": 8}, "--sbatch cpus-per-gpu=4: Slurm refuses it together with --cpus-per-task: take job.cpus_per_gpu=N alone"),
        ((20, 11), {"sbatch": {"mem-per-gpu": "4G"}, "mem": "8G"}, "--sbatch mem-per-gpu=4G: Slurm refuses it together with --mem: take one of them"),
        (None, {"sbatch": {"ntasks-per-gpu": 1}}, "--sbatch ntasks-per-gpu=1: Slurm refuses it together with --ntasks-per-node: --gpus says how many ranks a node has"),
        ((23, 11), {"sbatch": {"tres-per-task": "cpu:4"}, "cpus_per_gpu": 8}, "--sbatch tres-per-task=cpu:4: Slurm refuses it together with --cpus-per-task from 23.11 on: take job.cpus_per_gpu=N alone"),
        ((23, 11), {"sbatch": {"tres-per-task": "gres/gpu:1"}, "cpus_per_gpu": 8}, None),
        ((23, 2), {"sbatch": {"exclusive": True, "oversubscribe": True}}, "--sbatch oversubscribe: Slurm refuses it together with --exclusive from 23.02 on: take one of them"),
        ((22, 5), {"sbatch": {"exclusive": True, "oversubscribe": True}}, None),
        ((26, 5), {"gpus_by": "none", "sbatch": {"gres": "gpu:2", "gpus-per-node": 2}}, "--sbatch gpus-per-node=2: Slurm refuses it together with --gres=gpu from 26.05 on: ask for GPUs by one of them"),
        ((25, 11), {"gpus_by": "none", "sbatch": {"gres": "gpu:2", "gpus-per-node": 2}}, None),
    ],
)  # fmt: skip
def test_the_pair_is_named(version: tuple[int, int] | None, job: dict[str, object], line: str | None) -> None:
    asked = JobConfig(**{"name": "x", **job})  # type: ignore[arg-type]
    if line is None:
        check(asked, Profile("c"), version)
        return
    with pytest.raises(ConfigError) as refused:
        check(asked, Profile("c"), version)
    assert str(refused.value) == line


def test_another_layout_gets_its_own_memory() -> None:
    lumi = read_profile("lumi-g")
    saved = {"gpus_per_node": 8, "mem": "480G"}
    assert fitted({**spoken(saved, lumi), "gpus_per_node": 2}, lumi)["mem"] == "120G"
    assert fitted({**spoken({**saved, "mem": "100G"}, lumi), "gpus_per_node": 2}, lumi)["mem"] == "100G"
    assert spoken({**saved, "mem": None}, read_profile("generic"))["mem"] is None


def test_live_slurm_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    live = [Partition("gh", gpus_per_node=0, nodes=9), Partition("gpuA100x4", gpus_per_node=2, nodes=9)]
    monkeypatch.setattr(commands, "partitions", lambda: live)
    site = a_site("c")
    by_profile = Cluster(read_profile("tacc-vista"), "", site).chosen("gh")  # no GPUs in its Slurm's words
    assert [p.gpus_per_node for p in by_profile] == [1]
    assert [p.gpus_per_node for p in Cluster(read_profile("delta"), "", site).chosen("gpuA100x4")] == [2]


def test_a_site_that_chooses_the_partition_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what a job asks for; its default partition is for jobs without GPUs."""
    live = [Partition("cpu", gpus_per_node=0, nodes=9, default=True), Partition("gpu", gpus_per_node=4, nodes=9)]
    monkeypatch.setattr(commands, "partitions", lambda: live)
    routed = Cluster(read_profile("princeton-della"), "", a_site("c"))
    assert [p.gpus_per_node for p in routed.chosen(None)] == [routed.profile.gpus_per_node]
    assert [p.name for p in routed.chosen("cpu")] == ["cpu"]
    assert [p.name for p in Cluster(read_profile("generic"), "", a_site("c")).chosen(None)] == ["cpu"]


def test_which_slurm_is_a_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NERSC_HOST", "CC_CLUSTER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(commands, "site", lambda: a_site("pocket-1"))
    assert (find("auto").profile.name, find("lumi-g").live, find("generic").live) == ("pocket", False, True)
    monkeypatch.setattr(commands, "site", lambda: a_site("unheard-of"))
    assert (find("auto").profile.name, find("lumi-g").live, find("pocket").live) == ("generic", True, False)
    monkeypatch.setenv("CC_CLUSTER", "narval")
    assert find("auto").profile.name == "alliance-narval"


def table() -> str:
    """The sites of docs/sites.md, from their files."""
    head = (
        "profile",
        "where",
        "GPUs of a node",
        "how they are asked for",
        "checked",
        "facts by grade",
        "not confirmed",
    )
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in SITES:
        profile, found = read_profile(name), flags(script(resolved(name)))
        grades = [evidence.grade for evidence in profile.evidence.values()]
        asked = [flag for flag in found if re.match(r"gres=|gpus-per|constraint=|exclusive", flag)]
        unsure = ", ".join(f"`{key}`" for key, evidence in profile.evidence.items() if evidence.grade == "u")
        counts = ", ".join(f"{grades.count(grade)} {grade}" for grade in "oemu" if grade in grades)
        cells = [f"`{name}`", profile.description, f"{profile.gpus_per_node or '?'} x {profile.gpu_model or '?'}"]
        cells += [" ".join(f"`{flag}`" for flag in asked) or "not at all", str(profile.checked), counts, unsure]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_table_of_the_page() -> None:
    page = ROOT / "docs" / "sites.md"
    above, _, rest = page.read_text().partition("<!-- sites -->\n")
    _, _, below = rest.partition("\n<!-- end of sites -->")
    text = f"{above}<!-- sites -->\n{table()}\n<!-- end of sites -->{below}"
    if os.environ.get("UPDATE_GOLDEN"):
        page.write_text(text)
    assert page.read_text() == text and above and below
