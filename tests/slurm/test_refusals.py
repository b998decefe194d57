"""The sites' usual refusals, in Slurm's own words: which flag, and what to change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import launch
from settings import read_yaml
from slurm.commands import own_words
from slurm.config import JobConfig
from slurm.sites.refusals import explain
from slurm.walltime import Walltime

POLICY = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
FAILED = "sbatch: error: Batch job submission failed: "
SITE = {"account": ["p1234", "p5678"], "qos": ["normal", "long"], "constraint": ["a100", "h100"]}


@pytest.mark.parametrize(
    ("said", "job", "line"),
    [
        (f"{FAILED}Invalid account or account/partition combination specified", {"account": "p1243"}, "--account p1243: Slurm says: Invalid account or account/partition combination specified: did you mean p1234?"),
        (f"{FAILED}Invalid account or account/partition combination specified", {}, "--account is not given: Slurm says: Invalid account or account/partition combination specified: there are: p1234, p5678"),
        (f"{FAILED}Invalid account or account/partition combination specified", {"account": "p1234", "partition": "gpu"}, "--account p1234 --partition gpu: Slurm says: Invalid account or account/partition combination specified: see `sacctmgr show associations user=$USER`"),
        ("allocation failure: Invalid qos specification", {"qos": "longer"}, "--qos longer: Slurm says: Invalid qos specification: did you mean long?"),
        ("allocation failure: Invalid feature specification", {"constraint": "a10"}, "--constraint a10: Slurm says: Invalid feature specification: did you mean a100?"),
        ("allocation failure: Invalid partition name specified", {"partition": "gpux"}, "--partition gpux: Slurm says: Invalid partition name specified: see `sinfo --summarize`"),
        ("allocation failure: Required partition not available (inactive or drain)", {"partition": "old"}, "--partition old: Slurm says: Required partition not available (inactive or drain): see `sinfo --summarize`"),
        (f"{FAILED}User's group not permitted to use this partition", {"partition": "staff"}, "--partition staff: Slurm says: User's group not permitted to use this partition: see `sinfo --summarize`"),
        ("allocation failure: Requested node configuration is not available", {"mem": "900G"}, "--mem 900G --gpus 8 --nodes 2: Slurm says: Requested node configuration is not available: no node has all of it: ask for less"),
        (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)", {}, "--walltime is not given: Slurm says: Requested time limit is invalid (missing or exceeds some limit): give --walltime HH:MM:SS within the partition's limit"),
        (f"sbatch: error: QOSMaxWallDurationPerJobLimit\n{POLICY}", {"walltime": Walltime.parse("4-00:00:00")}, f"--walltime 4-00:00:00: Slurm says: QOSMaxWallDurationPerJobLimit; {own_words(POLICY)}: take less: the run goes on by itself through time limits"),
        (f"{FAILED}PartitionTimeLimit", {"walltime": Walltime.parse("4-00:00:00")}, "--walltime 4-00:00:00: Slurm says: PartitionTimeLimit: take less: the run goes on by itself through time limits"),
        (f"{FAILED}PartitionNodeLimit", {}, "--nodes 2: Slurm says: PartitionNodeLimit: take another number of nodes"),
        (f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}", {}, f"--continue-by auto: Slurm says: AssocMaxSubmitJobLimit; {own_words(POLICY)}: your places in the queue are used up: scancel a job; a chained run takes two places, --continue-by requeue one"),
        (f"sbatch: error: QOSMaxSubmitJobPerUserLimit\n{POLICY}", {}, f"--continue-by auto: Slurm says: QOSMaxSubmitJobPerUserLimit; {own_words(POLICY)}: your places in the queue are used up: scancel a job; a chained run takes two places, --continue-by requeue one"),
        (f"sbatch: error: QOSMaxNodePerUserLimit\n{POLICY}", {}, f"--nodes 2: Slurm says: QOSMaxNodePerUserLimit; {own_words(POLICY)}: take another number of nodes"),
        (f"sbatch: error: QOSMaxGRESPerUser\n{POLICY}", {}, f"--gpus 8 --nodes 2: Slurm says: QOSMaxGRESPerUser; {own_words(POLICY)}: take fewer GPUs in all"),
        (f"sbatch: error: MaxCpuPerAccount\n{POLICY}", {"cpus_per_gpu": 16}, f"job.cpus_per_gpu=16 --gpus 8: Slurm says: MaxCpuPerAccount; {own_words(POLICY)}: take fewer cores in all"),
        (f"sbatch: error: AssocGrpBillingMinutes\n{POLICY}", {"account": "p1234"}, f"--account p1234: Slurm says: AssocGrpBillingMinutes; {own_words(POLICY)}: the budget is used up, or too small for this job"),
        (POLICY, {"qos": "long"}, f"--qos long: Slurm says: {own_words(POLICY)}: a limit of yours is exceeded: see `sacctmgr show qos`"),
        ("sbatch: error: Invalid generic resource (gres) specification", {}, "--gpus 8: Slurm says: Invalid generic resource (gres) specification: this site asks for GPUs in another way than --gpus-per-node=N: see its documentation"),
        ("sbatch: error: Memory specification can not be satisfied", {"mem": "900G"}, "--mem 900G: Slurm says: Memory specification can not be satisfied: take less, or leave it out where the site says so"),
        ("sbatch: error: Invalid --mem specification", {"mem": "12Q"}, "--mem 12Q: Slurm says: Invalid --mem specification: write 16000M, 120G, or 0 for all of a node"),
        (f"sbatch: error: --mem is not allowed here: nodes are exclusive\n{FAILED}Unspecified error", {"mem": "10G"}, "--mem 10G: Slurm says: --mem is not allowed here: nodes are exclusive: take less, or leave it out where the site says so"),
        (f"{FAILED}Invalid wckey specification", {"sbatch": {"wckey": "w"}}, "--sbatch wckey=w: Slurm says: Invalid wckey specification: see `sacctmgr show wckeys user=$USER`"),
        ("allocation failure: Access denied to requested reservation", {"reservation": "r1"}, "--reservation r1: Slurm says: Access denied to requested reservation: see `scontrol show reservation`"),
        ("allocation failure: Invalid node name specified", {"nodelist": "n9"}, "--nodelist n9: Slurm says: Invalid node name specified: see `sinfo --Node`"),
        ("allocation failure: Invalid license specification", {"sbatch": {"licenses": "x"}}, "--sbatch licenses=x: Slurm says: Invalid license specification: see `scontrol show licenses`"),
        ("sbatch: unrecognized option '--frob=3'", {"sbatch": {"frob": 3}}, "--sbatch frob=3: Slurm says: unrecognized option '--frob=3': see `man sbatch`"),
        ("sbatch: error: Invalid --signal specification", {"sbatch": {"signal": "X"}}, "--sbatch signal=X: Slurm says: Invalid --signal specification: see `man sbatch`"),
        (f"sbatch: error: Ask Anna for access (room 12).\n{FAILED}Unspecified error", {}, "Slurm refuses the job: Ask Anna for access (room 12).: --dry-run shows what is sent"),
    ],
)  # fmt: skip
def test_table(said: str, job: dict[str, object], line: str) -> None:
    config = JobConfig(**{"name": "x", "nodes": 2, "gpus_per_node": 8, **job})  # type: ignore[arg-type]
    assert explain(own_words(said), config, lambda field: SITE.get(field, ())) == line


SLURM = {
    "scontrol": """case "$*" in
        "show config") printf 'ClusterName = site\\nSLURM_VERSION = 24.05.3\\nEnforcePartLimits = ALL\\n\
AccountingStorageType = accounting_storage/slurmdbd\\n' ;; esac""",
    "sinfo": "echo 'gpu*|up|2-00:00:00|1:00:00|1-infinite|0/9/0/9|gpu:4|64|512000|a100'",
    "squeue": "true",
    "srun": "true",
    "sacctmgr": """case "$*" in
        *associations*) printf 'p1234|normal,long\\np5678|normal\\n' ;;
        *"qos long"*) echo 'long|12:00:00' ;; esac""",
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that speak as those of a site with accounting do; `sbatch` is the test's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in SLURM.items():
        program(programs / name, script)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(launch, "use_pocket", lambda: None)
    monkeypatch.chdir(tmp_path)
    return programs


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def submit(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    """Exit code of launch.py, and the one line that it wrote to stderr."""
    code = launch.main(["--nodes", "1", "--gpus", "4", "--name", "x", *flags, "--", "true"])
    line = capsys.readouterr().err
    assert line.startswith("outlast: ") and line.count("\n") == 1
    return code, line.removeprefix("outlast: ").rstrip()


@pytest.mark.parametrize("only_rehearsed", [True, False])
def test_a_wrong_account_is_found_and_nothing_is_left(
    site: Path, capsys: pytest.CaptureFixture[str], only_rehearsed: bool
) -> None:
    said = f"{FAILED}Invalid account or account/partition combination specified"
    judged = "" if only_rehearsed else 'case "$*" in *--test-only*) exit 0 ;; esac\n'
    program(site / "sbatch", f"{judged}echo '{said}' >&2; exit 1")
    code, line = submit(capsys, "-A", "p1243")
    assert (code, line) == (78, f"--account p1243: Slurm says: {own_words(said)}: did you mean p1234?")
    assert not list(Path("runs").glob("*"))


def test_the_walltime_of_a_qos(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = submit(capsys, "-q", "long", "-t", "1-00:00:00")
    assert (code, line) == (
        78,
        "--walltime 1-00:00:00: the QOS long allows 12:00:00: the run goes on by itself, take --walltime 12:00:00",
    )


def test_a_site_that_takes_no_jobs_now_is_no_mistake(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(site / "sbatch", "echo 'allocation failure: System submissions disabled' >&2; exit 1")
    code, line = submit(capsys)
    assert (code, line) == (1, "sbatch --test-only: exit 1: System submissions disabled")
    assert not list(Path("runs").glob("*"))


def test_nodes_that_are_down_are_no_mistake(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--test-only refuses what sbatch itself lets wait until the nodes are back (22.05)."""
    program(site / "sinfo", SLURM["sinfo"].replace("0/9/0/9", "0/0/9/9"))
    refused = "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1"
    program(site / "sbatch", f'case "$*" in *--test-only*) {refused} ;; esac\necho "Submitted batch job 812"')
    assert launch.main(["--nodes", "1", "--gpus", "4", "--name", "x", "--", "true"]) == 0
    assert "job 812 is in the queue" in capsys.readouterr().out


def test_an_array_for_which_there_are_no_places_is_a_chain_also_where_slurm_counts_them_in_its_rehearsal(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An array takes a place for each of its jobs, which the limits of an association may not give."""
    refused = f'echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; echo "{POLICY}" >&2; exit 1'
    program(
        site / "sbatch",
        f"""case "$*" in *--test-only*) text=$(cat) ;; *) text=$(cat "$1") ;; esac
case "$text" in *--array*) {refused} ;; esac
echo 'Submitted batch job 812'""",
    )
    words = ["--nodes", "1", "--gpus", "4", "--name", "x", "--continue-by", "array", "--", "true"]
    assert launch.main(words) == 0, capsys.readouterr().err
    assert "job 812 is in the queue" in capsys.readouterr().out
    assert read_yaml(Path("runs/x/job.yaml"))["continue_by"] == "chain"


def test_what_slurm_and_the_site_say_to_a_good_job(site: Path) -> None:
    from slurm import commands

    said = "sbatch: 300 GPU-hours of p1234 are left\\nsbatch: Job 9 to start at 2026-11-24T11:42:14 using 4 processors"
    program(site / "sbatch", f"printf '{said}\\n' >&2")
    assert commands.rehearse("#!/bin/sh\n# a good job\n") == [
        "300 GPU-hours of p1234 are left",
        "Slurm expects it to start at 2026-11-24T11:42:14",
    ]
