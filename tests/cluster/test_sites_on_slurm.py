"""The ways to ask for GPUs, as sites want them, on a real Slurm: it hears them, and all ranks start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from envs.pocket import Pocket
from settings import dump_yaml
from tests.cluster.conftest import Launch, causes, job_of, over

SEES = """
    import os
    from pathlib import Path

    run = Path(os.environ["OUTLAST_RUN_DIR"])
    (run / f"rank-{os.environ['RANK']}.seen").write_text(os.environ["LOCAL_RANK"])
"""


@pytest.mark.parametrize(
    ("job", "gpus"),
    [
        ({"gpus_by": "gres"}, [("Node=", "2")]),
        ({"gpus_by": "gpus-per-task"}, [("Task=", "1")]),
        ({"gpus_by": "none"}, []),
        ({"gpus_by": "gres", "launcher": "torchrun"}, [("Node=", "2")]),
    ],
    ids=["gres", "gpus-per-task", "none", "gres-torchrun"],
)
def test_how_gpus_are_asked_for(
    pocket: Pocket, launch: Launch, tmp_path: Path, job: dict[str, str], gpus: list[tuple[str, str]]
) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(dump_yaml({"gpus_per_node": 2, "job": {"poll_seconds": 1.0, **job}}))
    run = launch("--nodes", "2", "--gpus", "2", "--cluster", "site.yaml", program=SEES)
    over(run)
    assert causes(run) == ["done"]
    assert [(run.path / f"rank-{rank}.seen").read_text() for rank in range(4)] == ["0", "1", "0", "1"]
    shown = pocket.ask("scontrol", "show", "job", job_of(run))
    assert re.findall(r"TresPer(\w+=)gres[:/]gpu:(\d+)", shown) == gpus, shown
