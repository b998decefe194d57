"""One rank of Outlast behind the gate: `python -m benchmarks.step.rank RUN_DIR/config.yaml`, else as the launcher's
`python -m trainer`. Nothing of the trainer is another: the gate stands before each step, and looks on.
"""

from __future__ import annotations

import runpy
import sys
from time import perf_counter
from typing import Any

from benchmarks.step.peers.common import Gate


def main(config: str) -> None:
    from trainer.stop import signals

    signals.install()  # its first act, before torch is imported here
    stand(Gate())
    sys.argv = ["trainer", config]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)


def stand(gate: Gate) -> None:
    """The gate before each step of the real loop; told are a batch's tokens, the loss that has arrived meanwhile, the
    seconds in which it was told, and those that this process took to look for a checkpoint and to load it."""
    from trainer import run
    from trainer.records.board import Board
    from trainer.records.step_log import StepLog
    from trainer.run import Training

    set_up, step, heard, add, load = Training.set_up, Training.step, StepLog.heard, Board.add, run.load_newest
    loads: list[float] = []

    def loaded(*given: Any) -> Any:
        began = perf_counter()
        resumed = load(*given)
        loads.append(perf_counter() - began)
        return resumed

    def watched(training: Training) -> None:
        set_up(training)
        gate.watch(training.engine.module)

    def gated(training: Training, batch: Any, agreement: Any) -> None:
        gate.step()
        gate.values["tokens"] = sum(micro.input_ids.numel() for micro in batch.micro_batches)
        gate.values["load"] = sum(loads)
        step(training, batch, agreement)

    def timed(log: StepLog, loss: float) -> int | None:
        began = perf_counter()
        told = heard(log, loss)
        if told is not None:
            gate.values["log"] = perf_counter() - began
        return told

    def noted(board: Board, step: int, **values: float) -> None:
        gate.values["loss"] = values["loss"]
        add(board, step, **values)

    Training.set_up, Training.step, run.load_newest = watched, gated, loaded  # type: ignore[method-assign]
    StepLog.heard, Board.add = timed, noted  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1])
