"""What errors mean that ranks often end by, and what to change: one table, searched in a rank's last lines. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slurm.exits import CONFIG, HANG


class Known(NamedTuple):
    pattern: str
    """In the rank's words: of several entries that fit the first counts."""
    meaning: str
    change: str
    echo: bool = False
    """It tells that another rank was lost: that one failed first."""


_NO_MEMORY = Known(
    r"Cannot allocate memory|DefaultCPUAllocator: (can't|not enough)|\bMemoryError\b|std::bad_alloc|oom[-_ ]kill|"
    r"Out Of Memory",
    "the node's memory, or the job's share of it, was used up",
    "more --mem (0: all of the node), fewer data workers, a smaller micro batch, less offload",
)
TABLE = (
    Known(
        r"CUDA out of memory|HIP out of memory|CUDA error: out of memory|torch\.(cuda\.)?OutOfMemoryError",
        "the GPU had no memory left",
        "a smaller micro batch, gradient checkpointing, or the model spread over more GPUs (launch.py plan: what fits)",
    ),
    Known(
        r"insufficient shared memory|unable to (open|mmap|allocate|resize) .*shared memory|out of shared memory|"
        r"/dev/shm.*No space left",
        "/dev/shm, the node's shared memory, is full",
        "fewer data workers, or more --mem; in a container bind the host's /dev/shm",
    ),
    _NO_MEMORY,
    Known(
        r"Watchdog caught collective operation timeout|NCCL.*timed? ?out|ProcessGroupNCCL.*[Tt]imeout",
        "a collective of NCCL was not joined by all ranks in time: one hangs, is late, or was lost",
        "look at the rank that did not join (launch.py logs --rank N); longer waits: a longer timeout at "
        "init_process_group, or the recipe's watchdog section",
    ),
    Known(
        r"Application timeout caused pair closure|Timed out waiting \d+ms for (recv|send)|gloo.*[Tt]imed? ?out|"
        r"Gloo connectFullMesh failed|Wait timeout after|Operation timed out",
        "a collective of gloo was not joined by all ranks in time: one hangs, is late, or was lost",
        "look at the rank that did not join (launch.py logs --rank N); where no rank ever meets another: "
        "GLOO_SOCKET_IFNAME names the interface that the nodes share",
    ),
    Known(
        r"Address already in use|EADDRINUSE|Errno 98\b",
        "a port is taken by another process of this node",
        "take MASTER_PORT from the environment, and port 0 for servers of your own; end a "
        "leftover process, or take another node",
    ),
    Known(
        r"DistStoreError|DistNetworkError|client socket has timed out|RendezvousTimeout|waiting for clients|"
        r"Connection refused|failed to connect to .*:\d+|No route to host|Name or service not known",
        "a rank did not reach the meeting point, MASTER_ADDR:MASTER_PORT",
        "look at rank 0, which opens it; between nodes: NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the interface "
        "that they share",
    ),
    Known(
        r"Disk quota exceeded|EDQUOT|Errno 122\b",
        "your quota on this file system is used up: bytes, or number of files",
        "make room (lfs quota, or the site's own command), then launch.py resume; or move the run's folder, and resume "
        "it by its path",
    ),
    Known(
        r"No space left on device|ENOSPC|Errno 28\b",
        "a disk is full: the run's, /tmp or a node's own",
        "make room, or take another TMPDIR, then launch.py resume; or move the run's folder, and resume it by its path",
    ),
    Known(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled|[Oo]ffline mode is enabled|"
        r"couldn't connect to 'https://|Failed to resolve '|NameResolutionError|Max retries exceeded with url|"
        r"Cannot find the requested files in the (disk|local) cache|is not a valid model identifier|"
        r"Temporary failure in name resolution",
        "a file of the internet is asked for, and compute nodes have none: it is not in the cache",
        "fetch it on the login node first (hf download NAME --local-dir DIR) and give the folder's path; "
        "set HF_HOME to a folder that the nodes read",
    ),
    Known(
        r"chat_template is not set|no (chat )?template argument|does not have a chat template|chat template.*not set",
        "the tokenizer has no chat template, and the data are chats",
        "take the tokenizer of the instruct model, or put a chat_template into tokenizer_config.json",
    ),
    Known(
        r"no kernel image is available|driver version is insufficient|forward compatibility was attempted|"
        r"CUDA driver initialization failed|The NVIDIA driver on your system is too old",
        "this build of torch does not fit the node's GPU or driver",
        "install torch for the driver's CUDA version (nvidia-smi shows it), or load the site's own",
    ),
    Known(
        r"No CUDA GPUs are available|Found no NVIDIA driver|CUDA-capable device\(s\) is/are busy|"
        r"no CUDA-capable device|invalid device ordinal|No HIP GPUs are available",
        "the rank sees no GPU, or not the one that it wants",
        "ask for GPUs as the site wants it (--gpus, --partition, --cluster NAME); torch's build must be for GPUs",
    ),
    Known(
        r"uncorrectable ECC|fallen off the bus|Xid \(|unspecified launch failure|GPU is lost|hardware error",
        "the GPU, or its memory, is broken",
        "launch.py resume RUN --exclude NODE, and tell the site's support the node",
    ),
    Known(
        r"device-side assert|index out of range in self|Assertion `.*t >= 0 && t < n_classes",
        "an index lies outside its table: mostly a token that the model's vocabulary does not have",
        "compare the tokenizer's size with the model's vocab_size; CUDA_LAUNCH_BLOCKING=1 names the line",
    ),
    Known(
        r"size mismatch for |Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict",
        "the weights are of another model than the one that was built",
        "compare the checkpoint's config with the model's",
    ),
    Known(
        r"cannot import name|undefined symbol|is required for a normal functioning|GLIBC(XX)?_[\d.]+' not found|"
        r"numpy\.dtype size changed|compiled using NumPy|was compiled with|VersionConflict|ContextualVersionConflict|"
        r"module '[\w.]+' has no attribute|incompatible with .*version",
        "two packages' versions do not fit each other, or the node's libraries",
        "compare pip list on the node with what was tested; unset PYTHONPATH, and load the modules of the install",
    ),
    Known(
        r"ModuleNotFoundError|No module named",
        "a Python package is not there where the ranks run",
        "install it into the environment that launch.py runs in, or activate the right one before you submit; in a "
        "container: job.rank_python",
    ),
    Known(
        r"cannot open shared object file|error while loading shared libraries",
        "a library is not there on the node",
        "load its module in job.setup (module load cuda), and see that LD_LIBRARY_PATH reaches the ranks",
    ),
    Known(
        r"is not finite|[Ll]oss is (nan|inf)|returned nan values|"
        r"non-?finite (loss|grad)|NaN or Inf found|contains? (nan|NaN|inf)",
        "the loss or the gradient is not a finite number: the training has blown up, or a sample is broken",
        "a lower learning rate, a longer warmup, gradient clipping, bf16 in place of fp16; look at the samples of the "
        "step",
    ),
    Known(
        r"DUE TO TIME LIMIT|DUE TO (PREEMPTION|NODE FAILURE|JOB REQUEUE)|(STEP|JOB) \S+ ON \S+ CANCELLED|"
        r"task.*: Cancelled",
        "Slurm ended it: a scancel, the time limit, a preemption or a lost node",
        "launch.py status says which; launch.py resume goes on",
    ),
    Known(
        r"Permission denied|Errno 13\b|EACCES",
        "a file or folder may not be read or written by this user",
        "ls -ld on its path on a node; in a container bind it (job.binds)",
    ),
    Known(
        r"Too many open files|Errno 24\b",
        "the process has more files open than it may",
        "ulimit -n 65536 in job.setup, or fewer data workers",
    ),
    Known(
        r"Stale file handle|Input/output error|Remote I/O error|Transport endpoint is not connected|"
        r"Errno (5|116|121)\b",
        "the shared file system failed for a moment, or a server of it is away",
        "launch.py resume; when it comes again tell the site's support the node and the time",
    ),
    Known(
        r"FileNotFoundError|No such file or directory|Errno 2\b",
        "a file is not there where the ranks run",
        "give whole paths, on a file system that the nodes share; in a container bind the folder (job.binds)",
    ),
    Known(
        r"Broken pipe|Connection (closed by peer|reset by peer)|ncclRemoteError|remote process exited|recvValue failed|"
        r"Socket closed|NCCL communicator was aborted|Connection was likely closed|peer .* (exited|is gone)",
        "another rank was lost, and this one could not go on without it",
        "look at the rank that ended first, and at its node: launch.py logs --all",
        echo=True,
    ),
    Known(
        r"ncclSystemError|ncclUnhandledCudaError|ncclInternalError|unhandled (system|cuda) error",
        "NCCL could not use the network or a GPU",
        "NCCL_DEBUG=INFO tells which; NCCL_SOCKET_IFNAME names the interface that the nodes share",
    ),
)

SIGNALS: dict[int, Known] = {
    signal.SIGILL: Known(
        "",
        "the processor does not know an instruction of the program (SIGILL): it was built for another one",
        "install or build the package on a node of this kind, not on the login node",
    ),
    signal.SIGBUS: Known(
        "",
        "the program read memory that no file stands behind any more (SIGBUS): a full /dev/shm, a file that was cut "
        "short, or a file system that failed",
        "look at df /dev/shm and the quota; fewer data workers; replace no file that is being read",
    ),
    signal.SIGSEGV: Known(
        "",
        "a compiled library failed (SIGSEGV)",
        "PYTHONFAULTHANDLER=1 names the line; compare the versions of the packages there",
    ),
    signal.SIGFPE: Known("", "a compiled library divided by zero (SIGFPE)", "PYTHONFAULTHANDLER=1 names the line"),
    signal.SIGABRT: Known(
        "",
        "a library gave up (SIGABRT); its words stand in the last lines",
        "read the lines before; PYTHONFAULTHANDLER=1 names the line",
    ),
    signal.SIGKILL: Known(
        "",
        "somebody killed it (SIGKILL): Slurm, the kernel for want of memory, or a person",
        "launch.py status says what Slurm did; dmesg on the node tells of the kernel; more --mem",
    ),
    signal.SIGTERM: Known(
        "",
        "it was asked to end (SIGTERM) before it could hear that",
        "launch.py status says what Slurm did; handle the signal before the imports",
    ),
}
_BY_THE_PROCESSOR = (signal.SIGILL, signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE)
"""They tell more than what the program wrote before."""
_LAST = 40  # lines in which words count that nobody raised
_CODES = {
    HANG: Known(
        "",
        "the rank hung, and its watchdog ended it",
        "the stacks beside its log (rank-*.stacks) show where; the one that differs from the others is the cause",
    ),
    CONFIG: Known("", "a mistake in the configuration, which the last line names", "mend it, then launch.py resume"),
}

_RAISED = re.compile(r"^(?:\[rank\d+\]: ?)?([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning|Stop\w*))(?::|$)")
TRACEBACK = "Traceback (most recent call last)"


def exception_of(lines: Sequence[str]) -> str | None:
    """The line of the last exception that ended a program of Python: what was raised, and its words."""
    return next((line.strip() for line in _last_traceback(lines) if _RAISED.match(line)), None)


def _last_traceback(lines: Sequence[str]) -> Sequence[str]:
    """And all that follows it; nothing where there is none."""
    begins = [number for number, line in enumerate(lines) if TRACEBACK in line]
    return lines[begins[-1] :] if begins else ()


def explain(lines: Sequence[str], end: Mapping[str, Any]) -> Known | None:
    """What a rank's last lines and its exit record mean: what was raised first, then all words, then its signal."""
    if end.get("oom"):
        return _NO_MEMORY
    by_signal = SIGNALS.get(end.get("signal") or 0)
    raised = exception_of(lines)
    if raised is not None:
        lines = _last_traceback(lines)  # it outlived what was said before
        at = max(number for number, line in enumerate(lines) if line.strip() == raised)
        known = _match("\n".join(lines[at:]))  # its words may go over several lines
    else:
        known = by_signal if end.get("signal") in _BY_THE_PROCESSOR else None
    return known or _match("\n".join(lines[-_LAST:])) or by_signal or _CODES.get(end.get("code") or 0)


def _match(text: str) -> Known | None:
    return next((known for known in TABLE if re.search(known.pattern, text)), None)
