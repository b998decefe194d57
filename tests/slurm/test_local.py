"""The supervisor and the shims with real processes and real signals, without a scheduler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import launch
from slurm.rundir import RunDir
from slurm.walltime import Walltime
from tests.slurm.conftest import READY, ROOT, Start, causes, gone
from tests.waiting import wait_until


def test_a_command_that_ends_is_done(run: RunDir, start: Start) -> None:
    assert start("print('hello')").wait(120) == 0
    assert run.done and causes(run) == ["done"]
    assert (run.attempt_dir(1) / "rank-0000.log").read_text() == "hello\n"
    assert json.loads((run.attempt_dir(1) / "rank-0000.exit").read_text())["code"] == 0
    assert (run.attempt_dir(1) / "hostfile").read_text() == f"{os.uname().nodename} slots=1\n"


def test_every_rank_of_any_command_is_started(run: RunDir, start: Start) -> None:
    program = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['MASTER_PORT'])"
    assert start(program, gpus_per_node=3, launcher="fork").wait(120) == 0
    lines = [(run.attempt_dir(1) / f"rank-{rank:04d}.log").read_text().split() for rank in range(3)]
    assert [line[:2] for line in lines] == [[str(rank), "3"] for rank in range(3)]
    assert len({line[2] for line in lines}) == 1 and run.attempts()[0]["exits"] == {"exit 0": 3}


def test_a_program_that_is_not_there_is_a_configuration_error(run: RunDir, start: Start) -> None:
    assert start("", command=["nonexistent-program"]).wait(120) == 78
    assert causes(run) == ["config"]
    logs = "".join(path.read_text() for path in run.attempt_dir(1).glob("*.log"))
    assert "outlast: nonexistent-program: No such file or directory" in logs and "Traceback" not in logs


def test_a_command_without_a_handler_is_stopped_by_TERM(run: RunDir, start: Start) -> None:
    process = start(READY.format(run=run.path) + "time.sleep(60)")
    wait_until(lambda: (run.path / "ready-1").exists())
    run.stop_file.write_text("enough\n")
    assert process.wait(120) == 77
    assert causes(run) == ["stop"]


def test_a_terminal_that_closes_ends_no_run(run: RunDir, start: Start) -> None:
    """Also not its connection. The ranks are in a session of their own."""
    process = start(READY.format(run=run.path) + "time.sleep(1000)")
    wait_until(lambda: (run.path / "ready-1").exists())
    process.send_signal(signal.SIGHUP)
    run.stop_file.write_text("enough\n")  # it is there to hear it
    assert process.wait(120) == 77
    assert causes(run) == ["stop"]


def test_a_run_that_is_over_starts_nothing(run: RunDir, start: Start) -> None:
    run.path.mkdir()
    run.cancel("stop", "by hand")
    assert start("print('hello')").wait(120) == 0
    assert run.newest_epoch() == 0


def test_three_crashes_without_progress_end_the_run(run: RunDir, start: Start) -> None:
    assert start("import sys; sys.exit('bad')").wait(120) == 93
    assert causes(run) == ["crash"] * 3
    assert run.cancelled is not None and run.cancelled["cause"] == "no progress"
    assert run.cancelled["lines"] == ["bad"] and "rank 0: exit 1" in run.cancelled["reason"]
    assert "rank 0: exit 1; see logs/attempt-0003/rank-0000.log" in run.attempts()[-1]["reason"]


def test_a_configuration_error_is_never_tried_again(run: RunDir, start: Start) -> None:
    assert start("import sys; sys.exit(78)").wait(120) == 78
    assert causes(run) == ["config"]


def test_ranks_that_ask_to_go_on_go_on(run: RunDir, start: Start) -> None:
    program = """
    import os, sys
    print(os.environ["OUTLAST_ATTEMPT"])
    sys.exit(0 if os.environ["OUTLAST_ATTEMPT"] == "4" else 75)
    """
    assert start(program).wait(120) == 0
    assert causes(run) == ["signal", "signal", "signal", "done"]


def test_the_users_limit_of_attempts(run: RunDir, start: Start) -> None:
    assert start("import sys; sys.exit(75)", max_attempts=2).wait(120) == 77
    assert run.cancelled is not None and "max-attempts=2" in run.cancelled["reason"]


def test_the_users_gpu_hours_end_in_a_stop(run: RunDir, start: Start) -> None:
    program = READY.format(run=run.path) + textwrap.dedent(f"""
        signal.signal(signal.SIGTERM, lambda *a: (open({str(run.path / "saved")!r}, "w").close(), sys.exit(0)))
        time.sleep(60)
    """)
    process = start(program, max_gpu_hours=8 / 3600, gpus_per_node=2, launcher="fork")  # 4 s of two ranks
    assert process.wait(120) == 77
    assert causes(run) == ["budget"] and (run.path / "saved").exists() and not run.done
    (record,) = run.attempts()
    assert record["end"] - record["start"] < 4 + 2
    assert run.cancelled is not None and run.cancelled["cause"] == "budget"
    assert "of --max-gpu-hours=" in run.cancelled["reason"]


def test_a_word_to_stop_ends_the_wait_before_a_restart(run: RunDir, start: Start) -> None:
    process = start("import sys; sys.exit(1)", max_attempts=9)
    wait_until(lambda: len(run.attempts()) == 2)  # now it waits for two seconds
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 77
    assert run.newest_epoch() == 2 and run.cancelled is not None and run.cancelled["cause"] == "stop"


def test_the_stop_file_reaches_a_command_as_TERM(run: RunDir, start: Start) -> None:
    process = start(
        READY.format(run=run.path) + "signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); time.sleep(60)"
    )
    wait_until(lambda: (run.path / "ready-1").exists())
    run.stop_file.write_text("enough\n")
    assert process.wait(120) == 77
    assert causes(run) == ["stop"] and not run.done and not run.stop_file.exists()


def test_ctrl_c_is_the_users_stop(run: RunDir, start: Start) -> None:
    process = start(
        READY.format(run=run.path) + "signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); time.sleep(60)"
    )
    wait_until(lambda: (run.path / "ready-1").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 77
    assert causes(run) == ["stop"]


def test_a_time_limit_without_a_scheduler(run: RunDir, start: Start) -> None:
    program = READY.format(run=run.path) + textwrap.dedent("""
        if os.environ["OUTLAST_ATTEMPT"] == "1":
            signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
            time.sleep(60)
    """)
    assert start(program, walltime=Walltime(seconds=4), lead_seconds=3).wait(120) == 0
    *cuts, end = causes(run)  # on a busy machine the second, too, may be cut before it has begun
    assert {*cuts} == {"timeout"} and end == "done"


def test_kill_9_of_a_rank_is_seen_and_the_run_goes_on(run: RunDir, start: Start) -> None:
    program = READY.format(run=run.path) + textwrap.dedent("""
        if os.environ["OUTLAST_ATTEMPT"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert start(program).wait(120) == 0
    assert causes(run) == ["crash", "done"]
    assert run.attempts()[0]["reason"].startswith("rank 0: signal 9")


def test_a_killed_supervisor_takes_its_ranks_along(run: RunDir, start: Start) -> None:
    process = start(f"import os, time\nopen({str(run.path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    wait_until(lambda: (run.path / "pid").exists() and (run.path / "pid").read_text())
    pid = int((run.path / "pid").read_text())
    process.kill()
    wait_until(lambda: gone(pid))


def test_a_command_runs_where_it_was_typed_also_after_a_resume_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    words = ["--cluster", "local", "--gpus", "1", "--name", "x", "--runs-dir", str(tmp_path / "runs")]
    program = "import os, sys; open('here', 'a').write('x'); sys.exit(0 if os.path.getsize('here') > 1 else 78)"
    monkeypatch.chdir(home)
    assert launch.main([*words, "--", sys.executable, "-c", program]) == 78
    monkeypatch.chdir(elsewhere)
    assert launch.main(["resume", str(tmp_path / "runs" / "x")]) == 0
    assert (home / "here").read_text() == "xx" and not list(elsewhere.iterdir())


def test_a_run_whose_supervisor_was_killed_is_resumed(run: RunDir, start: Start) -> None:
    process = start(READY.format(run=run.path) + "time.sleep(60 if os.environ['OUTLAST_ATTEMPT'] == '1' else 0)")
    wait_until(lambda: (run.path / "ready-1").exists())
    process.kill()
    process.wait()
    run.lift_end()
    again = subprocess.Popen(process.args, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    assert again.wait(120) == 0
    assert causes(run) == ["crash", "done"] and run.attempts()[0]["reason"] == "its supervisor was killed"
