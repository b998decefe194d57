"""Slurm's texts as Slurm 22.05 wrote them."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import pytest

from slurm import commands
from slurm.commands import failure, own_words, parse_job, parse_queue, run, sent_as, show_job
from slurm.config import JobConfig
from slurm.errors import CommandFailed, ControllerAway
from slurm.sites import site as site_facts
from slurm.sites.cluster import Cluster, with_continuation
from slurm.sites.profile import Profile
from slurm.walltime import Walltime
from tests.slurm.conftest import Tool

RUNNING = (
    "JobId=812 JobName=sft UserId=me(1000) GroupId=me(1000) MCS_label=N/A Priority=4294901757 Nice=0 Account=(null) "
    "QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=0 Restarts=1 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:00:07 TimeLimit=00:01:00 TimeMin=N/A SubmitTime=2026-11-24T02:00:00 EligibleTime=2026-11-24T02:00:00 "
    "StartTime=2026-11-24T02:00:01 EndTime=2026-11-24T02:01:01 Deadline=N/A PreemptEligibleTime=2026-11-24T02:00:01 "
    "PreemptTime=None NodeList=node[1-2] BatchHost=node1 NumNodes=2 Command=/home/me/my runs/submission.sh"
)


def test_a_running_job() -> None:
    facts = parse_job(RUNNING)
    assert (facts.job_id, facts.name, facts.state, facts.reason, facts.restarts) == ("812", "sft", "RUNNING", "None", 1)
    assert facts.end_time == datetime(2026, 11, 24, 2, 1, 1).timestamp()
    assert facts.preempt_time is None


def test_a_preempted_job() -> None:
    assert parse_job(RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-24T02:00:30")).preempt_time is not None


@pytest.mark.parametrize(
    ("job", "said"),
    [("812", "echo slurm_load_jobs error: Invalid job id specified >&2"), ("812_3", "echo Job 812_3 not found")],
)
def test_a_job_that_slurm_has_forgotten(tool: Tool, job: str, said: str) -> None:
    """Of an array's task while others are known it says so in other words, and on its standard output."""
    tool("scontrol", f"{said}\nexit 1")
    assert show_job(job) is None


def test_what_the_accounting_keeps_of_a_job(tool: Tool) -> None:
    tool("sacct", "echo 'CANCELLED by 1000|sft'")
    told = commands.accounted_job("812")
    assert told is not None and (told.job_id, told.state, told.name) == ("812", "CANCELLED", "sft")
    tool("sacct", "true")  # it knows no such job
    assert commands.accounted_job("812") is None
    tool("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert commands.accounted_job("812") is None
    tool("sacctmgr", "[ $4 = qos ] && echo 'normal|' && echo 'short|02:00:00'")
    assert commands.qos_max_walltime("short") == Walltime(hours=2)
    assert commands.qos_max_walltime("normal") is None and commands.qos_max_walltime("other") is None


@pytest.mark.parametrize(
    ("said", "raises"),
    [
        ("scancel: error: Kill job error on job id 812: Invalid job id specified", False),
        ("scancel: error: Kill job error on job id 812: Job/step already completing or completed", False),
        ("scancel: error: Kill job error on job id 812: Access/permission denied", True),
    ],
)
def test_a_job_that_has_ended_already_is_cancelled_enough(tool: Tool, said: str, raises: bool) -> None:
    tool("scancel", f"echo '{said}' >&2; exit 1")
    tool("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert commands.queue(["812"]) == {}
    with pytest.raises(CommandFailed) if raises else nullcontext():
        commands.cancel("812")


def test_a_signal_goes_to_the_step_that_was_started_last(tmp_path: Path, tool: Tool) -> None:
    tool("squeue", "printf '812.batch\n812.3\n812.extern\n812.12\n812.2\n8120.99\n'")
    tool("scancel", f'echo "$*" >> {tmp_path}/said')
    commands.signal_newest_step("812", "USR1")
    assert (tmp_path / "said").read_text() == "--signal=USR1 812.12\n"


def test_a_slurm_that_lists_no_reservations(tool: Tool) -> None:
    tool("scontrol", "echo 'ReservationName=course StartTime=x'; echo 'ReservationName=b Y=1'")
    assert commands.reservations() == ["course", "b"]
    tool("scontrol", "echo 'Access/permission denied' >&2; exit 1")
    assert commands.reservations() == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos specification\n", "Invalid qos specification"),
        ("allocation failure: Requested reservation is invalid", "Requested reservation is invalid"),
        ("slurm_load_jobs error: Invalid job id specified", "Invalid job id specified"),
        ("slurm_load_partitions: Socket timed out on send/recv operation", "Socket timed out on send/recv operation"),
        (
            "sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified\n",
            "invalid partition specified: nope; Invalid partition name specified",
        ),
        (
            "sbatch: error: You must give a project.\nsbatch: error: Batch job submission failed: Unspecified error\n",
            "You must give a project.",
        ),
        (
            "sbatch: unrecognized option '--x'\nTry \"sbatch --help\" for more information\n",
            "unrecognized option '--x'",
        ),
    ],
)
def test_slurms_own_words(said: str, words: str) -> None:
    assert own_words(said) == words


@pytest.mark.parametrize(
    ("code", "said", "sent"),
    [
        (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", True),
        (1, "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", True),
        (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (receive failure)", True),
        (1, "sbatch: error: Batch job submission failed: Connection reset by peer", True),
        (-9, "", True),
        (124, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        (1, "sbatch: error: Batch job submission failed: Invalid qos specification", None),
        (255, "sbatch: error: Invalid --time specification", None),
    ],
)
def test_whether_a_job_may_have_been_queued(code: int, said: str, sent: bool | None) -> None:
    error = failure("sbatch", code, said)
    assert (error.sent if isinstance(error, ControllerAway) else None) == sent


def test_a_controller_that_is_away_is_asked_again(tmp_path: Path, tool: Tool) -> None:
    away = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    tool("squeue", f"[ -e {tmp_path}/tried ] && echo back && exit\ntouch {tmp_path}/tried\n{away}")
    with pytest.raises(ControllerAway):
        run(["squeue"])
    (tmp_path / "tried").unlink()
    assert run(["squeue"], patience=30) == "back\n"


def test_jobs_of_the_queue_with_any_path() -> None:
    text = (
        "812|RUNNING|None|29:58|(null)|2026-11-24T02:00:00|30:00|/runs/a b%%c/logs/job-%j.log\n"
        "813|PENDING|Dependency|1-00:00:00|afterany:812(unfulfilled)|N/A|1-00:00:00|/runs/x|y/logs/job-%j.log   \n"
        "811|CANCELLED|None|30:00|(null)|N/A|30:00|/dev/null\n"
        "815_3|PENDING|JobArrayTaskLimit|30:00|afterany:814_8(unfulfilled)|N/A|30:00|/runs/y/logs/job-%A_%a.log\n"
        "815_2|RUNNING|None|30:00|(null)|N/A|30:00|/runs/50%%a/tasks/%a/logs/job-%A_%a.log\n"
    )
    first, second, third, array, task = parse_queue(text)
    assert (first.job_id, first.left, first.after, first.alive) == ("812", "29:58", None, True)
    assert first.start == datetime(2026, 11, 24, 2).timestamp() and second.start is None
    assert str(first.limit) == "00:30:00" and str(second.limit) == "1-00:00:00"
    assert (second.after, second.log, third.alive) == ("812", "/runs/x|y/logs/job-%j.log", False)
    assert (array.job_id, array.after, sent_as(array.job_id)) == ("815_3", "814_8", "815")
    assert second.waits_behind("812") and array.waits_behind("815_2") and array.waits_behind("814_8")
    assert (first.log_folder, task.log_folder) == ("/runs/a b%c/logs", "/runs/50%a/tasks/2/logs")
    assert array.is_one_of({"815"}) and array.is_one_of({"815_3"}) and not array.is_one_of({"815_2", "81"})
    assert not (
        array.waits_behind("815_3")
        or array.waits_behind("816_1")
        or task.waits_behind("815_1")
        or first.waits_behind("813")
    )


@pytest.mark.parametrize(
    ("priority", "weight", "flags", "array", "way"),
    [
        ("multifactor", 1000, "", 1001, "array"),
        ("multifactor", 1000, "MAX_TRES", 1001, "array"),
        ("multifactor", 1000, "ACCRUE_ALWAYS,MAX_TRES", 1001, "chain"),  # what waits behind another gains as well
        ("multifactor", 0, "", 1001, "chain"),
        ("basic", 1000, "", 1001, "chain"),  # the first who comes
        ("multifactor", 1000, "", 8, "chain"),  # too small a one
    ],
)
def test_how_a_run_goes_on_where_its_user_does_not_say(
    priority: str, weight: int, flags: str, array: int, way: str
) -> None:
    site = site_facts.parse(
        f"ClusterName             = c\nMaxArraySize            = {array}\nPriorityFlags           = {flags}\n"
        f"PriorityType            = priority/{priority}\nPriorityWeightAge       = {weight}\n"
        "SLURM_VERSION           = 22.05.8\n"
    )
    there = Cluster(Profile("c"), "", site)
    assert with_continuation(JobConfig("x"), there).continue_by == way
    assert with_continuation(JobConfig("x", continue_by="requeue"), there).continue_by == "requeue"
    assert with_continuation(JobConfig("x"), Cluster(Profile("c"), "")).continue_by == "chain"
