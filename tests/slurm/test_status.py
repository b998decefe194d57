"""When a run is done, what it cost, when its files expire; and that a look costs little."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from durable import append_line, parse_lines, read_tail
from settings import dump_yaml, to_plain
from slurm import verbs
from slurm.causes import ends
from slurm.config import JobConfig
from slurm.rundir import RunDir
from slurm.watch import pace
from slurm.watch.run_status import RunStatus
from slurm.watch.status import status
from slurm.watch.status_text import as_text
from slurm.watch.times import duration
from tests.slurm.conftest import Tool
from tests.trainer.report.lives import FIVE_CUTS, write_run
from tests.waiting import wait_until
from trainer.report.files import made

STEP = {"event": "step", "epoch": 2, "loss": 2.5, "seconds": 1.5, "tokens_per_second": 4000.0, "mfu": 0.4}


def make_run(folder: Path, name: str, job: str, attempt: int = 2) -> RunDir:
    """A run of 16 ranks whose first attempt has ended, and whose second one does a step in 2 seconds."""
    run, now = RunDir(folder / name), time.time()
    run.logs.mkdir(parents=True)
    (run.path / "job.yaml").write_text(dump_yaml(to_plain(JobConfig(name, nodes=2, gpus_per_node=8))))
    run.record_job(job, None)
    for epoch in range(1, attempt + 1):
        run.claim(job, 0, after=epoch - 1, ranks=16)
        claim = run.claims_dir / f"{epoch:04d}.json"
        since = {
            "time": now - 1000 / epoch,
            "total_steps": 1000,
            "resume_from": {"step": 200 * (epoch - 1), "epoch": 1},
        }
        claim.write_text(json.dumps({**json.loads(claim.read_text()), **since}))
    end = {"attempt": 1, "job_id": job, "restart_count": 0, "start": now - 1000, "end": now - 600, "cause": "timeout"}
    run.record_attempt(
        {**end, "reason": "deadline", "ranks": 16, "first_step": 0, "committed_step": 200, "step_seconds": 300.0}
    )
    for step in range(201, 211):
        append_line(run.events, {**STEP, "step": step, "time": now - 2 * (210 - step)})
    run.deadline_file.write_text(f"{now + 600:.0f}\n")
    return run


@pytest.fixture
def squeue(tmp_path: Path, tool: Tool) -> Path:
    """A squeue that prints what stands in the file `queue`, and counts how often it is asked."""
    tool("squeue", f"echo $* >>{tmp_path}/calls\ncat {tmp_path}/queue")
    (tmp_path / "queue").touch()
    return tmp_path / "queue"


def queued(*jobs: tuple[str, str, str]) -> str:
    return "".join(
        f"{job}|{state}|{reason}|10:00|(null)|N/A|1:00:00|/x/logs/job-%j.log\n" for job, state, reason in jobs
    )


def test_how_a_run_that_runs_stands(tmp_path: Path, squeue: Path) -> None:
    squeue.write_text(queued(("812", "RUNNING", "None"), ("813", "PENDING", "Dependency")))
    run = make_run(tmp_path, "sft", "812")
    run.record_job("813", "812")
    (one,) = status([run])
    assert (one.state, one.step, one.total_steps, one.loss) == ("running", 210, 1000, 2.5)
    assert one.seconds_per_step == pytest.approx(2.0) and one.mfu == 0.4
    # 790 steps of 2 s: 600 s in this job, and a part of the next one, which loses what an attempt loses.
    assert one.jobs_to_come == 1 and not one.waits_known and one.ends is not None
    assert one.ends - time.time() == pytest.approx(1580, abs=10)
    # 400 s and 500 s of 16 GPUs; in steps that count 300 s, and 10 steps of 1.5 s.
    assert one.gpu_hours == pytest.approx(4.0, abs=0.05) and one.goodput == pytest.approx(315 / 900, abs=0.01)
    text = as_text([one])
    assert "step 210 of 1,000 (21%), loss 2.5000" in text and "4,000 tokens/s, MFU 40.0%" in text
    assert "with 1 more job and their waits in the queue on top" in text and "job 813 goes on after this one" in text
    assert "timeout       the time limit\n" in text and "runs" in text.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "state", "words", "do"),
    [
        (("812", "PENDING", "AssocGrpGRESMinutes"), "waiting", "the hours of your account (GPUs) are used up", "-A ACCOUNT"),
        (("812", "PENDING", "JobHeldUser"), "waiting", "you have held it", "scontrol release 812"),
        (("812", "TIMEOUT", "TimeLimit"), "interrupted", "job 812 has ended: its time limit", "launch.py resume sft"),
        (("812", "OUT_OF_MEMORY", "OutOfMemory"), "interrupted", "the node's memory", "resume sft --mem MORE"),
        (("900", "RUNNING", "None"), "interrupted", "nothing of it is in the queue", "launch.py resume sft"),
    ],
)  # fmt: skip
def test_why_a_run_does_not_run_and_what_to_do(
    tmp_path: Path, squeue: Path, line: tuple[str, str, str], state: str, words: str, do: str
) -> None:
    squeue.write_text(queued(line))
    (one,) = status([make_run(tmp_path, "sft", "812")])
    assert one.state == state and words in one.why and do in one.do
    assert f"to do     {one.do}" in as_text([one])


def test_a_run_that_ended_by_a_known_error_says_what_to_change(tmp_path: Path, squeue: Path) -> None:
    run = make_run(tmp_path, "sft", "812")
    run.cancel(
        "no progress", "3 attempts", ["Traceback (most recent call last):", "OSError: [Errno 122] Disk quota exceeded"]
    )
    (one,) = status([run])
    assert "your quota" in one.why and one.do.startswith("make room") and one.do.endswith("launch.py resume sft")
    assert not (tmp_path / "calls").exists()  # a run that is over has no job to ask for


def test_many_runs_cost_one_squeue_and_the_ends_of_their_files(tmp_path: Path, squeue: Path) -> None:
    runs = [make_run(tmp_path, f"r{number}", str(100 + number)) for number in range(20)]
    squeue.write_text(queued(*((str(100 + n), "RUNNING", "None") for n in range(10))))
    for run in runs:  # to read a terabyte takes hours
        told = run.events.read_bytes()
        os.truncate(run.events, 1 << 40)
        with open(run.events, "ab") as file:
            file.write(b"\n" + told)
    found = status(runs)
    assert [one.state for one in found] == ["running"] * 10 + ["interrupted"] * 10
    assert {one.step for one in found} == {210} and len((tmp_path / "calls").read_text().splitlines()) == 1
    text = as_text(found, width=100).splitlines()
    assert max(map(len, text[:31])) <= 100 and text[1].startswith("r0 ")
    assert len(text) == 1 + 10 + 2 * 10 + 10 and text[12] == "    nothing of it is in the queue"
    assert "r19: launch.py resume r19" in text[-1]


@pytest.mark.parametrize("width", [60, 90, 110, 200])
def test_a_reason_that_is_longer_than_the_terminal_goes_on_below(tmp_path: Path, squeue: Path, width: int) -> None:
    runs = [make_run(tmp_path, name, job) for name, job in (("sft", "812"), ("cpt", "813"))]
    why = "rank 5: exit 1: FileNotFoundError: [Errno 2] No such file or directory: '/scratch/corpus/shard-0002.parquet'"
    for run in runs:
        run.cancel("no progress", why)
        record = {**run.attempts()[0], "attempt": 2, "cause": "crash", "reason": why}
        run.record_attempt(record)
    table, one = as_text(status(runs), width).splitlines(), as_text(status(runs[:1]), width).splitlines()
    words = " ".join(" ".join(table).split())
    assert words.count(why) == 2 and why in " ".join(" ".join(one).split())
    assert all(len(line) <= max(width, len(table[0])) for line in table[: -len(runs)])
    attempts = one[next(number for number, line in enumerate(one) if line.startswith("  attempt")) :]
    assert len(attempts) > 2 if width < 200 else len(attempts) == 2
    if width == 110:  # below where it begins
        begin = attempts[1].index("rank 5")
        assert attempts[2].startswith(" " * begin) and attempts[2][begin] != " "


@pytest.mark.nightly
def test_a_thousand_runs(tmp_path: Path, squeue: Path) -> None:
    """In 0.5 s, from the start of Python to the table. Each run has five attempts and a day of steps behind it; half of
    them are in the queue."""
    one, runs = make_run(tmp_path / "made", "one", "100", attempt=6), tmp_path / "runs"
    for attempt in range(2, 6):
        end = {"attempt": attempt, "job_id": "100", "restart_count": 0, "cause": "timeout", "reason": "deadline"}
        steps = {"ranks": 16, "first_step": 200, "committed_step": 205, "step_seconds": 300.0, "exits": {"exit 75": 16}}
        hosts = {"hosts": ["node1", "node2"], "failed_on": None}
        one.record_attempt({**end, **steps, **hosts, "start": time.time() - 900, "end": time.time() - 600})
    (one.path / "checkpoints" / "step-00000205-e0005").mkdir(parents=True)
    (one.path / "checkpoints" / "step-00000205-e0005" / "MANIFEST.json").write_text("{}")
    more = {"lr": 1e-5, "grad_norm": 0.71, "tokens": 64000, "hash": 2**63, "memory_bytes": 3e9, "chain": "0" * 16}
    more |= {"useful_tokens_per_second": 3900.0, "seconds_p50": 1.5, "seconds_p95": 1.6, "data_wait_seconds": 0.01}
    lines = [json.dumps({**STEP, **more, "epoch": 6, "step": step, "time": time.time()}) for step in range(206, 2000)]
    one.events.write_text("\n".join(lines) + "\n")
    for number in range(1000):
        run = RunDir(shutil.copytree(one.path, runs / f"run-{number:04}"))
        (run.path / "jobs.jsonl").write_text(json.dumps({"job": str(1000 + number), "after": None, "time": 0.0}) + "\n")
    squeue.write_text(queued(*((str(1000 + number), "RUNNING", "None") for number in range(500))))
    argv = [sys.executable, str(Path(verbs.__file__).parent.parent / "launch.py"), "status", "--runs-dir", str(runs)]
    # As a user's Python: what it has compiled is kept.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path / "compiled")

    def took(argv: list[str]) -> tuple[float, float]:
        """Seconds, and seconds of a processor, of the fastest of five."""
        found = []
        for _ in range(5):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append((seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
        return min(seconds for seconds, _ in found), min(used for _, used in found)

    text = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(text) == 1 + 1000 + 500 and "1,999" in text[1]
    (wall, used), (bare, _) = took(argv), took([sys.executable, "-c", "pass"])
    print(f"1,000 runs: {wall:.2f} s, {used:.2f} s of a processor, {wall / bare:.0f} times Python's own start")
    assert used < 0.5


def test_watch_looks_again_with_one_squeue_each_time(
    tmp_path: Path, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, looks = make_run(tmp_path, "sft", "812"), 0

    def look() -> str:
        nonlocal looks
        looks += 1
        if looks == 4:
            raise KeyboardInterrupt
        return as_text(status([run]))

    with pytest.raises(KeyboardInterrupt):
        verbs.look_at(look, again=0.01)
    assert len((tmp_path / "calls").read_text().splitlines()) == 3 and verbs.WATCH_SECONDS >= 30
    assert capsys.readouterr().out.count("sft: ") == 3


def test_goodput_is_that_of_the_report(tmp_path: Path, squeue: Path) -> None:
    """One run with five interruptions: a crash that goes on in the same allocation, steps that are done again, a save
    that the next attempt finds in the nodes' memory, and a damaged one."""
    run = RunDir(write_run(tmp_path, FIVE_CUTS).path)
    saved = [60, 80, 110, 165, 220, 300]
    assert [life.first for life in FIVE_CUTS[1:]] == [60, 80, 130, 160, 220] and FIVE_CUTS[-1].last == 300
    (run.path / "job.yaml").write_text(dump_yaml(to_plain(JobConfig("run", nodes=2, gpus_per_node=2))))
    records = run.attempts()
    (run.path / "attempts.jsonl").unlink()
    for record, step in zip(records, saved, strict=True):
        checkpoint = run.path / "checkpoints" / f"step-{step:08}-e{record['attempt']:04}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "MANIFEST.json").touch()
        claim = run.read_claim(record["attempt"])
        assert claim is not None
        steps = ends.trained(run, claim.epoch, record["first_step"], record["start"], record["end"])
        run.record_attempt({**record, **steps, "ranks": 4, "starter": claim.starter})
    (one,), where = status([run]), made(run.path).where
    assert one.goodput == pytest.approx(where.goodput, abs=1e-5) and 0.1 < where.goodput < 0.9
    assert one.gpu_hours == pytest.approx(4 * where.allocated / 3600)


# --- what is computed -----------------------------------------------------------------------------------


def test_when_it_is_done_under_a_time_limit_and_the_queue() -> None:
    speed = pace.pace_of([{**STEP, "step": step, "time": 10.0 * step} for step in (1, 2, 3)])
    assert speed is not None and speed.seconds == 10.0
    assert pace.forecast(5, speed, 100, 200, []) == pace.Forecast(50, 0, True)
    assert pace.forecast(500, speed, None, None, []) == pace.Forecast(5000, 0, True)
    attempt = {"first_step": 0, "committed_step": 10, "start": 0.0, "end": 150.0}  # 50 s lost
    before = [{**attempt, "job_id": "1"}, {**attempt, "job_id": "2", "start": 200.0, "end": 350.0}]
    # 100 s here, then 40 steps in jobs of 150 useful seconds, each after 50 s of queue.
    assert pace.forecast(50, speed, 100, 200, before) == pace.Forecast(500 + 3 * (50 + 50), 3, True)
    assert pace.pace_of([]) is None and pace.goodput([], 0, 0, None) is None


def test_times_in_words() -> None:
    assert [duration(s) for s in (41, 750, 14_280, 187_200)] == ["41 s", "12 min", "3 h 58 min", "2 d 4 h"]


# --- lines that a kill has torn -------------------------------------------------------------------------


WRITER = """
import sys
from pathlib import Path
from durable import append_line
path, number = Path(sys.argv[1]), 0
while True:
    number += 1
    append_line(path, {"event": "step", "epoch": 1, "step": number, "text": "x" * 300})
"""


def test_a_writer_that_is_killed_at_any_moment_leaves_lines_that_are_whole(tmp_path: Path) -> None:
    path, chance = tmp_path / "events.jsonl", random.Random(7)
    for _ in range(8):
        size = path.stat().st_size if path.exists() else 0
        with subprocess.Popen(
            [sys.executable, "-S", "-c", WRITER, str(path)], cwd=Path(__file__).parent.parent.parent
        ) as writer:
            wait_until(lambda size=size: path.exists() and path.stat().st_size > size)  # type: ignore[misc]
            time.sleep(chance.random() / 50)  # the moment is what is tested, nothing waits for it
            writer.send_signal(signal.SIGKILL)
        if chance.random() < 0.5:  # as a host's crash or a full disk does
            os.truncate(path, path.stat().st_size - chance.randrange(1, 300))
    records, torn = parse_lines(path.read_bytes())
    assert len(records) + torn == len(path.read_bytes().split(b"\n")) - path.read_bytes().endswith(b"\n")
    assert torn <= 8 and all(record["step"] > 0 for record in records)


def test_a_torn_line_is_dropped_wherever_it_was_torn_and_that_is_said(tmp_path: Path, squeue: Path) -> None:
    run = make_run(tmp_path, "sft", "812")
    whole = run.events.read_bytes()
    last = len(whole.splitlines()[-1])
    for cut in range(1, last):
        run.events.write_bytes(whole[: -1 - cut])
        records, torn = read_tail(run.events, 1 << 16)
        assert (records[-1]["step"], torn) == (209, 1)
    one: RunStatus = status([run])[0]
    assert one.step == 209 and "1 torn line of events.jsonl, as a kill leaves them, left out" in as_text([one])
    append_line(run.events, {**STEP, "step": 210, "time": time.time()})  # the next attempt's
    assert status([run])[0].step == 210
