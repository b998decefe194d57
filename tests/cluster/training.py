"""A small training for the tests on Slurm, and how far it has come."""

from __future__ import annotations

from pathlib import Path

from envs.drill.watch import events
from settings import dump_yaml, read_yaml
from slurm.rundir import RunDir
from tests.cluster.conftest import ROOT, causes, job_log
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from tests.waiting import wait_until


def write_recipe(folder: Path) -> Path:
    """A small Llama of about 0.1 s a step at four ranks on two cores."""
    write_tokenizer(folder / "tokenizer")
    write_rows(folder / "train.jsonl", texts(4000))
    write_rows(folder / "evaluation.jsonl", texts(100))
    model = read_yaml(ROOT / "recipes" / "demo.yaml")["model"]["config"]
    path = folder / "recipe.yaml"
    tree = {
        "name": "small",
        "model": {"tokenizer": "tokenizer", "config": {**model, "hidden_size": 64, "num_hidden_layers": 2}},
        "data": {"train": ["train.jsonl"], "evaluation": ["evaluation.jsonl"], "seq_len": 64},
        "train": {"steps": 240, "global_batch_size": 48, "precision": "fp32"},
        "optim": {"lr": 1e-3},
        "evaluation": {"every": 60, "batches": 1},
        "checkpoint": {"every": 15},
    }
    path.write_text(dump_yaml(tree))
    return path


def reaches(run: RunDir, attempt: int, steps: int) -> int:
    """Wait until an attempt has done so many steps. Returns the last one."""

    def done() -> list[int]:
        return [event["step"] for event in events(run, "step") if event["epoch"] == attempt]

    wait_until(lambda: len(done()) >= steps or run.over, f"{steps} steps of attempt {attempt}", 240)
    assert len(done()) >= steps, f"{causes(run)}\n{job_log(run)}"
    return done()[-1]
