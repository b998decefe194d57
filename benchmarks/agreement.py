"""What the agreement of every step costs, with real ranks that fill the cores.

Steps without it, with it, and with gloo's all_reduce of the same size take turns in the same processes. The figure is
the CPU time of all ranks beside their computing, all threads counted, over the cores they share: so much longer takes a
step that fills them. The wall clock would say it too, on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row

ROOT = Path(__file__).parent.parent
CORES = 2
STEP_SECONDS = 0.05
BLOCK = 10  # steps between two changes of the arm
GOALS = {2: 1.0, 4: 2.0}  # percent of a step, by the number of ranks
NONE, OURS, GLOO = "none", "votes", "all_reduce"


def measure(quick: bool) -> list[Row]:
    """A row for 2 and for 4 ranks on two cores."""
    return [_row(world, goal, _ranks(world, rounds=5 if quick else 12)) for world, goal in GOALS.items()]


def _row(world: int, goal: float, seconds: dict[str, float]) -> Row:
    ours, gloo = (100 * (seconds[arm] - seconds[NONE]) / STEP_SECONDS for arm in (OURS, GLOO))
    return Row(
        f"agreement at {world} ranks on {CORES} cores",
        "% of a 50 ms step",
        ours,
        "gloo all_reduce",
        gloo,
        ratio=gloo / ours if ours > 0 else None,
        goal=f"under {goal:g} %",
        met=ours < goal,
    )


def _ranks(world: int, rounds: int) -> dict[str, float]:
    """Seconds that a step takes of the cores besides its computing, in each arm."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= {"OMP_NUM_THREADS": "1", "OUTLAST_ATTEMPT": "1"}
        argv = [sys.executable, "-m", "benchmarks.agreement", folder, str(rounds)]
        cores = sorted(os.sched_getaffinity(0))[:CORES]
        ranks = [
            subprocess.Popen(
                argv,
                env={**os.environ, **common, "RANK": str(rank)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
            for rank in range(world)
        ]
        outputs = [rank.communicate()[0] for rank in ranks]
        assert not any(rank.returncode for rank in ranks), f"ranks ended with {[rank.returncode for rank in ranks]}"
        return dict(json.loads(outputs[0]))


# --- a rank -------------------------------------------------------------------------------------------------


def main(folder: Path, rounds: int) -> None:
    import torch
    import torch.distributed as dist

    from trainer.data.batches import RankBatch
    from trainer.data.feed import Feed
    from trainer.runtime import start
    from trainer.stop.lead import LeadTime
    from trainer.stop.star import Star
    from trainer.stop.stop import Stop

    runtime = start(folder, longest_wait=60)
    stop = Stop(runtime, Star(runtime), LeadTime([]), lambda: None)
    matrix, gradient = torch.randn(192, 192), torch.zeros(100_000)
    vector = torch.zeros(13, dtype=torch.float64)

    def multiply(seconds: float) -> int:
        """How many products a rank does in so much CPU time."""
        began, count = time.process_time(), 0
        while time.process_time() - began < seconds:
            torch.mm(matrix, matrix)
            count += 1
        return count

    def endless() -> Iterator[RankBatch]:
        while True:
            yield RankBatch([], valid_tokens=1000, hash=1, pairs=0)

    products = min(runtime.gather(multiply(STEP_SECONDS * min(1.0, CORES / runtime.world_size))))

    def steps(arm: str) -> float:
        """Seconds of CPU in which it computed."""
        computing = 0.0
        with Feed(endless()) as feed:
            ballot = stop.cast(feed) if arm == OURS else None
            work = dist.all_reduce(vector, group=runtime.control, async_op=True) if arm == GLOO else None
            for _ in range(BLOCK):
                if ballot is not None:
                    ballot.read()
                    feed.take()
                    ballot = stop.cast(feed)
                if work is not None:
                    work.wait()
                    work = dist.all_reduce(vector, group=runtime.control, async_op=True)
                began = time.thread_time()
                for _ in range(products):
                    torch.mm(matrix, matrix)
                computing += time.thread_time() - began
                dist.all_reduce(gradient)
            if ballot is not None:
                ballot.read()
            if work is not None:
                work.wait()
        return computing

    times: dict[str, list[float]] = {NONE: [], OURS: [], GLOO: []}
    for arm in times:
        steps(arm)  # warm
    for _ in range(rounds):
        for arm, found in times.items():
            runtime.barrier()
            began = time.process_time()
            computing = steps(arm)
            found.append((time.process_time() - began - computing) / BLOCK)
    shares = runtime.gather({arm: statistics.median(found) for arm, found in times.items()})
    if runtime.leads:
        print(json.dumps({arm: sum(share[arm] for share in shares) / CORES for arm in times}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
