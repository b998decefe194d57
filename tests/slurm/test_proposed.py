"""The time limit that the plan proposes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launch
from settings import dump_yaml
from slurm.proposed import EACH, LEAST, divided

SHAPE = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


@given(st.floats(1, 1e7), st.integers(1800, 400_000))
def test_attempts_of_one_length_reach_the_end_within_the_limit(seconds: float, longest: int) -> None:
    attempts, each = divided(seconds, float(longest))
    assert min(LEAST, longest) <= each <= longest
    assert attempts * (each - EACH) >= seconds * (1 - 1e-9)
    fewest = math.ceil(seconds / (longest - EACH))
    assert attempts == fewest, "no more waits in the queue than the limit takes"
    assert each == LEAST or each * attempts <= seconds + attempts * (EACH + 300), "and nothing asked for in vain"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe of an hour or two on eight H100; its train section."""
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("x")
    train = {"steps": 500, "global_batch_size": 64, "gradient_checkpointing": True}
    tree = {
        "model": {"config": SHAPE, "tokenizer": "."},
        "data": {"train": ["x.txt"], "seq_len": 4096},
        "train": train,
        "optim": {"lr": 1e-5},
        "engine": {"kind": "fsdp"},
    }
    Path("sft.yaml").write_text(dump_yaml(tree))
    Path("known.yaml").write_text("name: known\ngpus_per_node: 8\ngpu: h100-80\nmax_walltime: '04:00:00'\n")
    Path("silent.yaml").write_text("name: silent\ngpus_per_node: 8\nmax_walltime: '04:00:00'\n")
    return train


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str | None, str]:
    """The script's time limit, and what is said of it."""
    assert launch.main(["--dry-run", "sft.yaml", "--nodes", "1", *words]) == 0
    shown = capsys.readouterr()
    time = re.search(r"--time=(\S+)", shown.out)
    said = [line for line in shown.err.splitlines() if line.startswith("time limit")]
    return time[1] if time else None, "".join(said)


def seconds(limit: str | None) -> int:
    assert limit is not None
    return sum(int(part) * 60**power for power, part in enumerate(reversed(limit.split(":"))))


def test_a_known_gpu_and_a_known_length_propose_a_limit(
    site: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["plan", "sft.yaml", "--gpus", "8", "--gpus-of", "h100-80", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["plan"]["seconds"]
    limit, said = dry(capsys, "--cluster", "known.yaml")
    assert launch.main(["--dry-run", "sft.yaml", "--nodes", "1", "--cluster", "known.yaml", "--json"]) == 0
    budget = json.loads(capsys.readouterr().out)["job"]["max_gpu_hours"]
    assert budget == math.ceil(2 * 8 * seconds(limit) / 3600), "twice what is asked for"
    assert 1.5 * planned + EACH <= seconds(limit) <= 1.5 * planned + EACH + 300
    assert said.startswith(f"time limit {limit}: the plan says ") and "50% more" in said
    assert "jobs" not in said and said.endswith("another: --walltime")
    long, said = dry(capsys, "--cluster", "known.yaml", "train.steps=2000")
    assert seconds(long) <= 4 * 3600 and re.search(r"in \d jobs", said)
    assert dry(capsys, "--cluster", "known.yaml", "train.steps=1")[0] == "00:30:00"


def test_the_plan_knows_a_sites_gpus_and_its_unit(site: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with Path("known.yaml").open("a") as file:
        file.write("billing: {unit: SU, per_node_hour: 3}\n")
    assert launch.main(["plan", "sft.yaml", "--cluster", "known.yaml", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["plan"]["gpus_per_node"], told["plan"]["device"], told["assumed"]) == (8, "h100-80", [])
    assert told["units"] == f"{3 * told['plan']['node_hours']:,.4g} SU"
    assert launch.main(["plan", "sft.yaml", "--cluster", "leonardo-booster", "--gpus-of", "a100-80", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["units"] == f"{8 * told['plan']['gpu_hours']:,.4g} core-hours"
    assert dry(capsys, "--cluster", "known.yaml", "--walltime", "1:00:00")[0] == "01:00:00"


def test_what_nobody_knows_or_somebody_has_said_stays(site: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(capsys, "--cluster", "silent.yaml") == (None, "")
    assert dry(capsys, "--cluster", "known.yaml", "--walltime", "1:00:00") == ("01:00:00", "")
    assert seconds(dry(capsys, "--cluster", "known.yaml", "--time-min", "3:50:00")[0]) == 13_800
