"""Slurm's texts as Slurm 22.05 wrote them."""

from __future__ import annotations

from datetime import datetime, timedelta

from slurm.commands import parse_job, parse_partitions

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


def test_partitions_with_mixed_nodes() -> None:
    text = "batch*|1-00:00:00|2|gpu:4\nbatch*|1-00:00:00|1|gpu:a100:8(S:0-1)\nlong|infinite|4|(null)\nshort|30:00|1|gpu:2080ti:2,gpu:1g.5gb:7,nvme:1\n"
    batch, long, short = parse_partitions(text)
    assert (batch.name, batch.default, batch.nodes, batch.gpus_per_node) == ("batch", True, 3, 8)
    assert (long.max_walltime, long.gpus_per_node) == (None, 0)
    assert (short.max_walltime, short.gpus_per_node) == (timedelta(minutes=30), 9)
