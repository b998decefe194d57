"""What ranks' last words mean, and which rank failed first."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from slurm.causes import failures, known_errors, logs
from slurm.rundir import RunDir
from slurm.watch import merged

TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 7, in <module>\n    main()\n'
# As torch 2.13, NCCL 2.27, transformers 5.23, huggingface_hub 1.2, Slurm 22.05 and Python 3.11 write them.
WORDS = [
    (TRACEBACK + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.23 GiB is free.", "the GPU had no memory left"),
    (TRACEBACK + "RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)", "the node's memory"),
    (TRACEBACK + "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.", "/dev/shm"),
    ("[rank1]:[E1129 04:44:59.1 ProcessGroupNCCL.cpp:683] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE) ran for 600001 milliseconds before timing out.", "a collective of NCCL"),
    (TRACEBACK + "RuntimeError: [../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete", "a collective of gloo"),
    (TRACEBACK + "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms while trying to connect to (10.0.0.1, 29500).", "meeting point"),
    (TRACEBACK + "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, code: -98, name: EADDRINUSE, message: address already in use", "a port is taken"),
    (TRACEBACK + "OSError: [Errno 122] Disk quota exceeded: 'step-1'", "your quota"),
    (TRACEBACK + "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.", "compute nodes have none"),
    (TRACEBACK + "ImportError: tokenizers>=0.22.0,<=0.23.0 is required for a normal functioning of this module, but found tokenizers==0.19.1.\nTry: `pip install transformers -U`", "versions do not fit"),
    ("python: /lib64/libc.so.6: version `GLIBC_2.34' not found (required by libtorch.so)", "versions do not fit"),
    (TRACEBACK + "RuntimeError: CUDA error: no kernel image is available for execution on the device", "does not fit the node's GPU"),
    (TRACEBACK + "RuntimeError: No CUDA GPUs are available", "sees no GPU"),
    (TRACEBACK + "RuntimeError: CUDA error: uncorrectable ECC error encountered", "is broken"),
    (TRACEBACK + "RuntimeError: CUDA error: device-side assert triggered", "vocabulary"),
    (TRACEBACK + "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory", "a library is not there"),
    (TRACEBACK + "ValueError: Cannot use chat template functions because tokenizer.chat_template is not set and no template argument was passed!", "no chat template"),
    ("outlast: the gradient of steps 40 to 42 is not finite: lower optim.lr, or look at their samples", "not a finite number"),
    ("slurmstepd: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-11-29T04:44:59 DUE TO TIME LIMIT ***", "Slurm ended it"),
    (TRACEBACK + "OSError: [Errno 116] Stale file handle: 'x'", "shared file system"),
    (TRACEBACK + "PermissionError: [Errno 13] Permission denied: '/scratch/x'", "may not be read"),
    (TRACEBACK + "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234", "another rank was lost"),
    (TRACEBACK + "RuntimeError: Error(s) in loading state_dict for LlamaForCausalLM:\n\tsize mismatch for lm_head.weight", "another model"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "meaning"), WORDS)
def test_what_it_means(words: str, meaning: str) -> None:
    known = known_errors.explain(words.splitlines(), {"code": 1})
    assert known is not None and meaning in known.meaning and known.change


def test_what_was_raised_counts_more_than_what_was_said_before() -> None:
    lines = [
        "warning: Connection reset by peer",
        *TRACEBACK.splitlines(),
        "OSError: [Errno 28] No space left on device",
    ]
    assert known_errors.exception_of(lines) == lines[-1]
    known = known_errors.explain(lines, {"code": 1})
    assert known is not None and "a disk is full" in known.meaning
    warned = ["could not load x: No module named 'kernels'", *TRACEBACK.splitlines(), "AttributeError: no width"]
    assert known_errors.explain(warned, {"code": 1}) is None  # it lived on without that package
    assert known_errors.explain(["all is well"], {"code": 1}) is known_errors.exception_of(["ValueError: x"]) is None
    by_signal = known_errors.explain(["No such file or directory"], {"signal": int(signal.SIGBUS)})
    assert by_signal is not None and "SIGBUS" in by_signal.meaning
    killed = known_errors.explain([], {"signal": 9, "oom": True})
    assert killed is not None and "the node's memory" in killed.meaning


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "sft")
    run.path.mkdir()
    run.claim("812", 0, after=0, ranks=4)
    run.attempt_dir(1).mkdir(parents=True)
    return run


def ended(run: RunDir, rank: int, when: float, words: str, code: int | None = None, signum: int | None = None) -> None:
    failures.rank_log(run, 1, rank).write_text(words + "\n")
    end = {"rank": rank, "code": code, "signal": signum, "time": when, "host": f"n{rank}"}
    (run.attempt_dir(1) / f"rank-{rank:04d}.exit").write_text(json.dumps(end))


LOST = TRACEBACK + "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234"


def test_a_rank_that_lost_another_did_not_fail_first(run: RunDir) -> None:
    ended(run, 0, 1.0, LOST, code=1)  # its clock goes ahead
    ended(run, 1, 2.0, "", signum=9)
    ended(run, 2, 3.0, "", signum=int(signal.SIGBUS))
    ended(run, 3, 4.0, LOST, code=1)
    assert failures.first_failure(run, 1) == 2
    said = logs.show(run)
    assert "== rank 2 on n2: signal 7 (it failed first; 3 others did not end well)" in said and "SIGBUS" in said
    ended(run, 2, 3.0, LOST, code=1)
    assert failures.first_failure(run, 1) == 1  # all the others have lost one: it was killed
    found = logs.as_json(run)
    assert (found["rank"], found["end"]["signal"]) == (1, 9) and "SIGKILL" in found["meaning"]


CANCELLED = "slurmstepd-n0: error: *** STEP 812.0 ON n0 CANCELLED AT 2026-11-29T04:44:59 ***"


def told(run: RunDir, *words: str) -> None:
    failures.job_log(run, "812").write_text("\n".join(["04:44:58 outlast: attempt 1 starts at step 0", *words, ""]))


@pytest.mark.parametrize("records", ["none", "asked", "killed"])
def test_what_slurm_ended_has_no_rank_that_failed_first(run: RunDir, records: str) -> None:
    failures.rank_log(run, 1, 0).write_text("step 7\n")
    for rank in range(4) if records != "none" else ():
        ended(run, rank, 1.0, "step 7", signum=15)
        if records == "asked":
            end = json.loads((run.attempt_dir(1) / f"rank-{rank:04d}.exit").read_text())
            (run.attempt_dir(1) / f"rank-{rank:04d}.exit").write_text(json.dumps({**end, "asked": True}))
    assert "none failed first" not in logs.show(run)
    if records == "asked":  # by launch.py stop, or a time limit that they heard of
        assert logs.show(run).endswith("== rank 0 on n0: signal 15: ended as it was asked to, no rank failed")
    told(run, "srun: Job step aborted: Waiting up to 32 seconds", CANCELLED, "srun: error: n1: tasks 2-3: Killed")
    said = logs.show(run)
    outside = (
        "== all ranks were ended from outside, none failed first: STEP 812.0 ON n0 CANCELLED AT 2026-11-29T04:44:59"
    )
    assert outside in said.splitlines() and "step 7" in said and "it means: Slurm ended it" in said
    found = logs.as_json(run)
    assert (found["rank"], found["failed_first"]) == (0, None) and "Slurm ended it" in found["meaning"]
    ended(run, 2, 9.0, TRACEBACK + "ValueError: x", code=1)  # one that had its own failure is named all the same
    assert logs.as_json(run)["failed_first"] == 2 and "ended from outside" not in logs.show(run)


def test_what_slurm_says_after_a_ranks_end_explains_nothing(run: RunDir) -> None:
    for rank, when in ((0, 3.0), (1, 3.0), (2, 2.0), (3, 3.0)):
        ended(run, rank, when, "", signum=9)
    told(run, "srun: error: n2: task 2: Exited with exit code 137", CANCELLED)
    assert logs.as_json(run)["failed_first"] == 2 and "somebody killed it (SIGKILL)" in logs.show(run)


def test_a_rank_that_left_no_record_went_before_those_that_were_killed(run: RunDir) -> None:
    for rank in (0, 1, 3):
        ended(run, rank, 2.0, "", signum=9)
    failures.rank_log(run, 1, 2).write_text("its last words\n")
    told(run, "srun: error: n2: task 2: Killed", CANCELLED)
    said = logs.show(run)
    assert "its last words" in said and "== rank 2: no exit record (it failed first; 3 others did not end well)" in said


def test_all_logs_in_the_order_of_time(run: RunDir) -> None:
    claim = run.read_claim(1)
    assert claim is not None
    at = claim.time
    run.events.write_text(
        "".join(f'{{"event": "step", "epoch": 1, "step": {n}, "seconds": 1, "time": {at + n}}}\n' for n in (1, 2, 3))
    )
    ended(run, 0, at + 9, "resumed\nstep      1 of 9\nstep      3 of 9\nall stop", code=75)
    ended(run, 1, at + 2.5, f"a warning\n{TRACEBACK}ValueError: bad", code=1)
    lines = list(merged.merged(run, 1))
    assert [line for line in lines if "line 7" not in line and "main()" not in line] == [
        "   0| resumed",
        "   1| a warning",
        "   0| step      1 of 9",
        "   1| Traceback (most recent call last):",
        "   1| ValueError: bad",
        "   0| step      3 of 9",
        "   0| all stop",
    ]


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("2026-11-29 04:44:59,250 INFO x", 0.25),
        ("[2026-11-29 04:44:59,250] [INFO] x", 0.25),
        ("[W1129 04:44:59.250000000 socket.cpp:1] x", 0.25),
        ("04:44:59 outlast: x", 0.0),
        ("step 3 of 9", None),
        ("99:99:99 x", None),
    ],
)
def test_the_time_that_a_line_begins_with(line: str, seconds: float | None) -> None:
    from datetime import datetime

    whole = datetime(2026, 11, 29, 4, 44, 59).timestamp()
    assert merged._stamp(line, whole) == (None if seconds is None else whole + seconds)
    if line.startswith("04:"):
        assert merged._stamp(line, whole + 80_000) == whole + 86_400  # the next day's


def test_each_error_begins_with_words_that_can_be_looked_for() -> None:
    """docs/errors.md shows the first of each."""
    for known in known_errors.TABLE:
        words = known.pattern.split("|")[0]
        assert re.escape(words).replace("\\ ", " ").replace("\\-", "-") == words, words
