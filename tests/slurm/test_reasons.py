"""Slurm's codes in words: none of its manual is left without, and what is asked of a user can be done."""

from __future__ import annotations

import pytest

from slurm.causes import reasons
from slurm.causes.cause import FREE

# The job reason codes of Slurm's manual; limits by the parts that they are made of.
_MANUAL = """
AccountingPolicy AccountNotAllowed AssociationJobLimit AssociationResourceLimit AssociationTimeLimit BadConstraints
BeginTime BurstBufferOperation BurstBufferResources BurstBufferStageIn Cleaning DeadLine Dependency
DependencyNeverSatisfied FedJobLock FrontEndDown InactiveLimit InvalidAccount InvalidQOS JobArrayTaskLimit JobHeldAdmin
JobHeldUser JobHoldMaxRequeue JobLaunchFailure Licenses NodeDown None PartitionConfig PartitionDown PartitionInactive
PartitionNodeLimit PartitionTimeLimit PowerNotAvail PowerReserved Priority Prolog QOSJobLimit QOSNotAllowed
QOSResourceLimit QOSTimeLimit QOSUsageThreshold ReqNodeNotAvail Reservation ReservationDeleted Resources SchedDefer
SystemFailure WaitingForScheduling
AssocGrpBBMinutes AssocGrpBilling AssocGrpBillingMinutes AssocGrpBillingRunMinutes AssocGrpCpuLimit
AssocGrpCPUMinutesLimit AssocGrpCPURunMinutesLimit AssocGrpEnergy AssocGrpGRES AssocGrpGRESMinutes
AssocGrpGRESRunMinutes AssocGrpJobsLimit AssocGrpLicense AssocGrpMemLimit AssocGrpMemMinutes AssocGrpMemRunMinutes
AssocGrpNodeLimit AssocGrpNodeMinutes AssocGrpNodeRunMinutes AssocGrpSubmitJobsLimit AssocGrpUnknown AssocGrpWallLimit
AssocMaxBBPerJob AssocMaxBillingPerNode AssocMaxCpuPerJobLimit AssocMaxCPUMinutesPerJobLimit AssocMaxGRESPerJob
AssocMaxGRESPerNode AssocMaxJobsLimit AssocMaxMemPerJob AssocMaxNodePerJobLimit AssocMaxSubmitJobLimit
AssocMaxWallDurationPerJobLimit MaxBillingPerAccount MaxCpuPerAccount MaxGRESPerAccount MaxJobsPerAccount
MaxMemoryPerAccount MaxMemPerLimit MaxNodePerAccount MaxSubmitJobsPerAccount QOSGrpBillingMinutes QOSGrpCpuLimit
QOSGrpGRES QOSGrpGRESMinutes QOSGrpJobsLimit QOSGrpMemLimit QOSGrpNodeLimit QOSGrpSubmitJobsLimit QOSGrpWallLimit
QOSMaxCpuMinutesPerJobLimit QOSMaxCpuPerJobLimit QOSMaxCpuPerNode QOSMaxCpuPerUserLimit QOSMaxGRESMinutesPerJob
QOSMaxGRESPerJob QOSMaxGRESPerNode QOSMaxGRESPerUser QOSMaxJobsPerUserLimit QOSMaxMemoryPerJob QOSMaxMemoryPerUser
QOSMaxNodePerJobLimit QOSMaxNodePerUserLimit QOSMaxSubmitJobPerUserLimit QOSMaxWallDurationPerJobLimit
QOSMinCpuNotSatisfied QOSMinGRES QOSMinMemory QOSMinNode
"""
CODES = _MANUAL.split()


def test_every_code_of_the_manual_has_words() -> None:
    assert [code for code in CODES if reasons.waiting(code).meaning.startswith("Slurm's code is")] == []
    assert reasons.waiting("Something_new").meaning == "Slurm's code is Something new"
    told = [*map(reasons.waiting, CODES), *reasons.WAITING.values(), *reasons.ENDED.values()]
    assert all(reason.do.format(run="sft", job="812", log="x.log").count("{") == 0 for reason in told)
    assert {*FREE, "timeout", "crash", "oom", "hang", "cancel", "config"} <= reasons.CAUSES.keys()


@pytest.mark.parametrize(
    ("code", "meaning", "do"),
    [
        ("Priority", "jobs of higher priority come first", "--time-min"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "maintenance that begins before its end (UnavailableNodes:n[1-2])", "-t TIME"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions", "go first", "sinfo -R"),
        ("job_requeued_in_held_state", "is held", "scontrol release"),
        ("AssocGrpGRESMinutes", "the hours of your account (GPUs) are used up", "-A ACCOUNT"),
        ("AssocGrpGRESRunMinutes", "time limit of the running jobs of your account", "shorter --walltime"),
        ("QOSMaxGRESPerUser", "your jobs have all GPUs that the QOS gives one user", "some of them end"),
        ("QOSMaxJobsPerUserLimit", "you have as many jobs as the QOS allows", "--qos"),
        ("QOSGrpNodeLimit", "all users together, take all nodes", "fewer --nodes"),
        ("QOSMaxWallDurationPerJobLimit", "more time than the QOS gives one job: it would wait for ever", "the run outlasts it"),
        ("AssocMaxNodePerJobLimit", "more nodes than your account gives one job", "smaller layout"),
        ("QOSMinGRES", "less GPUs than the QOS wants", "ask for more"),
    ],
)  # fmt: skip
def test_why_a_job_waits(code: str, meaning: str, do: str) -> None:
    reason = reasons.waiting(code)
    assert meaning in reason.meaning and do in reason.do, reason


def test_how_a_job_has_ended() -> None:
    assert "time limit" in reasons.ended("TIMEOUT", "TimeLimit").meaning
    assert reasons.ended("OUT_OF_MEMORY", "OutOfMemory").do == "launch.py resume {run} --mem MORE"
    assert reasons.ended("FAILED", "JobLaunchFailure").meaning.endswith("a node could not start it")
    assert reasons.ended("FAILED", "NonZeroExitCode").meaning == reasons.ENDED["FAILED"].meaning
