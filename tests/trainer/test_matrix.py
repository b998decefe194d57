"""Every engine reads, at every size, what every engine has saved at three ranks: masters and moments to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.trainer.ranks import Run
from tests.trainer.test_engines import DDP, FSDP, OFFLOAD, zero

ENGINES = {
    "ddp": DDP,
    "fsdp": FSDP,
    "zero 1": zero(1),
    "zero 2": zero(2),
    "zero 3": zero(3),
    "zero 3 offload": zero(3, **OFFLOAD),
}


@pytest.mark.nightly
@pytest.mark.parametrize("saver", ENGINES)
def test_it_reads_what_was_saved(new_run: Callable[..., Run], saver: str) -> None:
    run = new_run("run", engine=ENGINES[saver])
    checkpoint = run.path / "checkpoints" / run.stop_after(3, 2)
    for reader, engine in ENGINES.items():
        run.change_engine(engine)
        for world in (1, 2, 3, 4):
            check = ["tests.trainer.check_loaded", str(run.path / "config.yaml"), str(checkpoint)]
            assert run.go(world, argv=check) == [0] * world, (reader, world, run.log())
