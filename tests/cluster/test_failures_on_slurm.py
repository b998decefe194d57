"""Fifteen failures on a real Slurm, planted on one rank of four: `logs` names that rank, and says what it means. A
sixteenth comes from outside and meets all ranks alike: there `logs` names none."""

from __future__ import annotations

import textwrap

import pytest

from slurm.causes.logs import as_json, show
from tests.cluster.conftest import Launch, causes, job_log, over

# Each failure: the words of its explanation, and what the rank does. Where a library that raises it is here, it does;
# the GPU's words are copied (torch 2.13, NCCL 2.27).
FAILURES = {
    "the GPU had no memory left": """
        class OutOfMemoryError(RuntimeError):
            __module__ = "torch"
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB "
            "of which 1.23 GiB is free. Including non-PyTorch memory, this process has 77.86 GiB memory in use.")""",
    "the node's memory": "bytearray(1 << 60)",
    "a collective of NCCL": """
        print("[rank2]:[E1129 04:44:59.1 ProcessGroupNCCL.cpp:683] [Rank 2] Watchdog caught collective operation "
            "timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600001 milliseconds before timing "
            "out.", flush=True)
        os.abort()""",
    "a collective of gloo": """
        from datetime import timedelta
        import torch.distributed as dist
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
        import threading
        def other():  # it meets its peer, and joins nothing
            there = dist.TCPStore("127.0.0.1", store.port, 2, is_master=False)
            groups.append(dist.ProcessGroupGloo(dist.PrefixStore("x", there), 1, 2, timedelta(seconds=5)))
        groups = []
        threading.Thread(target=other, daemon=True).start()
        group = dist.ProcessGroupGloo(dist.PrefixStore("x", store), 0, 2, timedelta(seconds=5))
        import torch
        options = dist.AllreduceOptions()
        options.timeout = timedelta(seconds=0.2)
        group.allreduce([torch.ones(1)], options).wait()""",
    "a port is taken": """
        import socket
        one, two = socket.socket(), socket.socket()
        one.bind(("", 0))
        two.bind(one.getsockname())""",
    "a disk is full": 'os.write(os.open("/dev/full", os.O_WRONLY), b"x")',
    "your quota": "import errno\nraise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), 'step-00000010')",
    "compute nodes have none": """
        os.environ["HF_HUB_OFFLINE"] = "1"
        from huggingface_hub import hf_hub_download
        hf_hub_download("meta-llama/Llama-3.1-8B", "config.json")""",
    "versions do not fit": "from json import no_such_function",
    "a Python package is not there": "import no_such_module",
    "an instruction": "os.kill(os.getpid(), signal.SIGILL)",
    "(SIGBUS)": """
        import mmap, tempfile
        with tempfile.TemporaryFile() as file:
            file.truncate(8192)
            view = mmap.mmap(file.fileno(), 8192)
            file.truncate(0)
            view[4096]""",
    "(SIGKILL)": "os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does",
    "no chat template": """
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast
        plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
        plain.apply_chat_template([{"role": "user", "content": "hi"}])""",
    "not a finite number": """
        print("outlast: the gradient of steps 40 to 42 is not finite: lower optim.lr", file=sys.stderr)
        sys.exit(1)""",
}
OUTSIDE = """
    import subprocess
    step = os.environ["SLURM_JOB_ID"] + "." + os.environ["SLURM_STEP_ID"]
    subprocess.run(["scancel", step], check=True)
    time.sleep(60)"""
# Attempt 1, 3, 5 ... fail each in its way, on rank 2; those between say that they go on, so that no failures add up.
PROGRAM = """
import os, signal, site, sys, time
FAILURES = {failures!r}
attempt, rank = int(os.environ["OUTLAST_ATTEMPT"]), int(os.environ["RANK"])
number, goes_on = divmod(attempt - 1, 2)
if goes_on:
    sys.exit(75)
if number == len(FAILURES):
    sys.exit(0)
if rank == 2:
    site.main()  # it is started without
    exec(FAILURES[number])
time.sleep(120)  # as one that waits in a collective
"""


@pytest.mark.nightly  # thirty-two attempts
def test_of_fifteen_failures_each_is_explained_by_its_first_rank(launch: Launch) -> None:
    assert len(FAILURES) == 15
    pieces = [textwrap.dedent(text) for text in (*FAILURES.values(), OUTSIDE)]
    run = launch("--nodes", "2", "--gpus", "2", program=PROGRAM.format(failures=pieces), name="planted")
    over(run, 240)
    assert run.done, f"{causes(run)}\n{job_log(run)}"
    found = {}
    for number, words in enumerate(FAILURES):
        told = as_json(run, attempt=2 * number + 1)
        if told["failed_first"] != 2 or words not in str(told["meaning"]) or not told["change"]:
            found[words] = told
    assert not found, found
    by_slurm = as_json(run, attempt=2 * len(FAILURES) + 1)
    assert by_slurm["failed_first"] is None and "Slurm ended it" in by_slurm["meaning"]
    assert "== all ranks were ended from outside, none failed first: STEP" in show(run, attempt=2 * len(FAILURES) + 1)
    assert "STEP" in run.attempts()[2 * len(FAILURES)]["reason"]
    shown = show(run, attempt=1)
    assert "== rank 2 on node2: exit 1 (it failed first; 3 others did not end well)" in shown
    assert "torch.OutOfMemoryError: CUDA out of memory" in shown and "change:   a smaller micro batch" in shown
