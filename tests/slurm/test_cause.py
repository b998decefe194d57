"""The oracle table and the decisions: every row of what was measured on a real Slurm."""

from __future__ import annotations

from typing import Any

import pytest

from slurm.causes.cause import (
    Next,
    RankExit,
    attempt_cause,
    bad_nodes,
    cut_short,
    decide,
    failed_node,
    foreign_cause,
    predecessor_cause,
    refused_for_the_end,
    scheduler_cause,
)
from slurm.commands import JobFacts


def facts(state: str = "RUNNING", reason: str = "None", restarts: int = 0, preempted: bool = False) -> JobFacts:
    return JobFacts("7", "sft", state, reason, restarts, 1000.0, 900.0 if preempted else None)


@pytest.mark.parametrize(
    ("given", "restart_count", "cause"),
    [
        (facts(), 0, None),
        (facts(preempted=True), 0, "preemption"),  # in the grace
        (facts("COMPLETING", restarts=1, preempted=True), 0, "preemption"),  # after it
        (facts("COMPLETING", restarts=1), 0, "requeued"),  # by an admin
        (facts("COMPLETING", "NodeDown", restarts=1), 0, "node_failure"),
        (facts("COMPLETING", "TimeLimit"), 0, "timeout"),
        (facts("COMPLETING"), 0, "cancel"),
        (facts("CANCELLED"), 0, "cancel"),
        (facts("RUNNING", restarts=2), 2, None),
        (None, 0, None),  # no Slurm, or it is silent
    ],
)
def test_why_a_signal_came(given: JobFacts | None, restart_count: int, cause: str | None) -> None:
    assert scheduler_cause(given, restart_count) == cause


@pytest.mark.parametrize(
    ("state", "preempted", "cause"),
    [
        ("CANCELLED", True, "cancel"),  # scancel during the grace: only the state afterwards tells it
        ("COMPLETED", True, "preemption"),
        ("PREEMPTED", True, "preemption"),
        ("TIMEOUT", False, "timeout"),
        ("NODE_FAIL", False, "node_failure"),
        ("FAILED", False, "crash"),
        ("OUT_OF_MEMORY", False, "oom"),
    ],
)
def test_what_a_successor_reads_of_its_predecessor(state: str, preempted: bool, cause: str) -> None:
    assert predecessor_cause(facts(state, preempted=preempted)) == cause


def exits(*ends: int | str | None) -> list[RankExit]:
    return [
        RankExit(i, end if isinstance(end, int) else None, {"kill": 9, "TERM": 15}.get(str(end)))
        for i, end in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("ends", "scheduler", "stop", "cause"),
    [
        (exits(0, 0), None, None, "done"),
        (exits(0, 0), "timeout", None, "done"),  # finished in the last moment
        (exits(75, 75), None, "deadline", "timeout"),
        (exits(75, 75), None, "signal SIGUSR1", "signal"),
        (exits(75, 75), None, "budget", "budget"),
        (exits(75, 75), "preemption", "signal SIGTERM", "preemption"),
        (exits(75, "kill"), "preemption", None, "preemption"),
        (exits(77, 77), "preemption", "stop file", "stop"),
        (exits(78, "kill"), None, None, "config"),
        (exits(76, 76), None, None, "fenced"),
        (exits("kill", "kill"), "cancel", None, "cancel"),
        (exits(1, "kill"), None, None, "crash"),
        (exits(86, "kill"), None, None, "hang"),
        (exits(75, None), None, "deadline", "crash"),
        ([RankExit(0, 1), RankExit(1, None, 9, "oom")], None, None, "oom"),
        ([RankExit(0, 86), RankExit(1, 1, None, "oom")], None, None, "oom"),  # its peers waited for it
        ([RankExit(0, 1), RankExit(1, None, 6, "hang")], None, None, "hang"),
        ([RankExit(0, 1), RankExit(1, None, 9, "oom")], "preemption", None, "preemption"),
    ],
)
def test_why_an_attempt_ended(ends: list[RankExit], scheduler: str | None, stop: str | None, cause: str) -> None:
    assert attempt_cause(ends, scheduler, stop) == cause


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("Slurm job 812 has expired", "timeout"),
        ("Unable to create step for job 812: Job/step already completing or completed", "requeued"),
        ("Unable to create step for job 812: Invalid generic resource (gres) specification", None),
        ("", None),
    ],
)
def test_a_step_that_came_too_late_is_no_crash(words: str, cause: str | None) -> None:
    assert refused_for_the_end(words) == cause


def history(*attempts: tuple[str, int, int]) -> list[dict[str, Any]]:
    return [{"cause": cause, "first_step": first, "committed_step": last} for cause, first, last in attempts]


@pytest.mark.parametrize(
    ("attempts", "next_", "code"),
    [
        (history(("done", 0, 9)), Next.FINISH, 0),
        (history(("timeout", 0, 5)), Next.NEXT_JOB, 0),
        (history(("preemption", 0, 0)), Next.NEXT_JOB, 0),
        (history(*[("preemption", 0, 0)] * 9), Next.NEXT_JOB, 0),  # preemptions are free
        (history(("signal", 0, 5)), Next.HERE, 0),
        (history(("crash", 0, 0)), Next.HERE, 0),
        (history(("crash", 0, 0), ("crash", 0, 0), ("crash", 0, 0)), Next.STOP, 93),
        (history(("crash", 0, 0), ("timeout", 0, 0), ("oom", 0, 0)), Next.STOP, 93),
        (history(("crash", 0, 0), ("preemption", 0, 0), ("crash", 0, 0)), Next.HERE, 0),
        (history(("crash", 0, 0), ("crash", 0, 4), ("crash", 4, 4)), Next.HERE, 0),  # one of them got further
        (history(("stop", 0, 5)), Next.STOP, 77),
        (history(("cancel", 0, 5)), Next.STOP, 77),
        (history(("config", 0, 0)), Next.STOP, 78),
        (history(("fenced", 0, 0)), Next.LEAVE, 0),
    ],
)
def test_what_follows(attempts: list[dict[str, Any]], next_: Next, code: int) -> None:
    decision = decide(attempts, None, 0.0, None)
    assert (decision.next, decision.code) == (next_, code)


def test_time_limits_of_a_foreign_command_are_no_lack_of_progress() -> None:
    attempts = history(*[("timeout", 0, 0)] * 5)
    assert decide(attempts).code == 93
    assert decide(attempts, steps_known=False).next is Next.NEXT_JOB
    assert decide(history(*[("crash", 0, 0)] * 3), steps_known=False).code == 93


@pytest.mark.parametrize(
    ("ends", "scheduler", "stop", "cause"),
    [
        (exits(0, 0), None, None, "done"),
        (exits(0, 0), None, "deadline", "timeout"),
        (exits(0, "TERM"), None, "budget", "budget"),
        (exits(0, "TERM"), None, "stop file", "stop"),
        (exits("TERM", "TERM"), None, "deadline", "timeout"),  # it has no handler
        (exits(0, 0), "cancel", None, "cancel"),
        (exits(0, 0), "preemption", None, "preemption"),
        (exits(1, "TERM", "kill"), None, "deadline", "timeout"),  # the first lost its peer before it heard itself
        (exits(1, 75), None, "deadline", "crash"),
        (exits(1, "TERM"), None, None, "crash"),
        (exits("kill", "TERM"), None, None, "crash"),
        ([RankExit(0, None, 15, "asked"), RankExit(1, 75)], None, None, "signal"),  # it went to the ranks alone
        ([RankExit(0, None, 15, "asked"), RankExit(1, 1)], None, None, "crash"),  # srun's word to the other rank
    ],
)
def test_why_a_foreign_command_ended(ends: list[RankExit], scheduler: str | None, stop: str | None, cause: str) -> None:
    assert foreign_cause(ends, scheduler, stop) == cause


def test_the_users_limits_end_a_run() -> None:
    attempts = history(("timeout", 0, 5), ("timeout", 5, 9))
    assert decide(attempts, 2, 0.0, None).code == 77
    assert "GPU-hours" in decide(attempts, None, 8.5, 8.0).reason
    assert decide(attempts, 3, 7.9, 8.0).next is Next.NEXT_JOB
    decision = decide(history(("budget", 0, 5)), None, 7.99, 8.0)  # stopped in time, with a checkpoint
    assert (decision.code, decision.cause) == (77, "budget")


def test_restarts_in_an_allocation_back_off() -> None:
    crashes = [("crash", step, step + 1) for step in range(9)]
    delays = [decide(history(*crashes[: count + 1])).delay for count in range(9)]
    assert delays == [0, 2, 4, 8, 16, 32, 60, 60, 60]
    assert decide(history(*crashes, ("preemption", 9, 9), ("crash", 9, 9))).delay == 0
    assert decide(history(("signal", 0, 5), ("signal", 5, 9))).delay == 0
    assert decide(history(*[("signal", 0, 0)] * 4), steps_known=False).delay == 8


def test_a_program_that_always_asks_to_be_started_again_ends_where_its_progress_is_known() -> None:
    """Exit 75 is also sysexits' word for what may work later: a lock, a mount that is missing."""
    attempts = [{**one, "progress": False} for one in history(*[("signal", 0, 0)] * 3)]
    assert decide(attempts, steps_known=False).code == 93
    assert decide([*attempts[:2], {**attempts[2], "progress": True}], steps_known=False).next is Next.HERE


def test_the_end_for_want_of_progress_says_what_failed() -> None:
    attempts = [{**one, "reason": f"why {i}"} for i, one in enumerate(history(*[("crash", 0, 0)] * 3))]
    assert decide(attempts).reason == "3 attempts without a new committed step, the last: why 2"


@pytest.mark.parametrize(
    ("cause", "ends", "first", "node"),
    [
        ("crash", exits("kill", "kill", 1, "kill"), 2, "b"),
        ("hang", exits(86, "kill", "kill", "kill"), 0, "a"),
        ("crash", exits(None, None, None, None), 0, None),  # srun could not start the step
        ("node_failure", exits(75, "kill", None, None), 0, "b"),
        ("node_failure", exits(None, None, None, None), 0, None),  # which of them?
        ("preemption", exits("kill", "kill", None, None), 0, None),
        ("timeout", exits(75, 75, 75, 75), 0, None),
    ],
)
def test_the_node_that_an_attempt_failed_on(cause: str, ends: list[RankExit], first: int, node: str | None) -> None:
    assert failed_node(cause, ends, first, ["a", "b"]) == node


def test_a_node_that_failed_twice_is_bad_for_a_day() -> None:
    hour = 3600.0
    failed = [("a", 0.0), ("b", hour), ("a", 2 * hour), (None, 2 * hour), (None, 3 * hour), ("b", 23 * hour)]
    attempts = [{"failed_on": node, "end": end} for node, end in failed]
    assert bad_nodes(attempts[:2], 2 * hour) == [] and bad_nodes(attempts[:3], 3 * hour) == ["a"]
    assert bad_nodes(attempts, 24 * hour - 1) == ["a", "b"]
    assert bad_nodes(attempts, 24.5 * hour) == ["b"] and bad_nodes(attempts, 26 * hour) == []
    assert bad_nodes([{"end": hour}], hour) == []  # written by an older supervisor


@pytest.mark.parametrize(
    ("cause", "committed", "short"),
    [("preemption", 40, True), ("node_failure", 40, True), ("preemption", 41, False), ("crash", 40, False)],
)
def test_nodes_that_are_taken_before_a_commit_bring_the_next_save_forward(
    cause: str, committed: int, short: bool
) -> None:
    """A crash does not: a poisoned run would seem to get on."""
    assert cut_short([{"cause": cause, "first_step": 40, "committed_step": committed}]) is short
    assert not cut_short([])
