"""`launch.py prepare`: what submit would do with the data, without a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import launch
from settings import dump_yaml, read_yaml
from tests.trainer.data.samples import texts, write_rows, write_tokenizer

SMALL = {"vocab_size": 512, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_imports: None) -> Path:
    """A recipe for two nodes with its files, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    for name in ("b", "a"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", [*texts(500), {"text": ""}])
    recipe = {
        "job": {"nodes": 2, "gpus_per_node": 3},
        "model": {"config": {"model_type": "llama", **SMALL}, "tokenizer": "tokenizer"},
        "data": {"train": ["data"], "seq_len": 8},
        "train": {"steps": 10, "global_batch_size": 48},
        "optim": {"lr": 1e-3},
    }
    (tmp_path / "sft.yaml").write_text(dump_yaml(recipe))
    return tmp_path


def test_it_prepares_what_submit_then_finds(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["prepare", "sft.yaml", "--show", "2"]) == 0
    said = capfd.readouterr().out
    assert "train: 1,002 rows = 1,000 documents + 2 that cannot be used; empty: 2; " in said
    assert "document 0 of 1,000: " in said and "document 500 of 1,000: " in said and "<|endoftext|>»" in said
    assert [path.name for path in Path("runs").iterdir()] == [".prepared"]
    [folder] = Path("runs/.prepared").iterdir()
    assert launch.main(["--no-submit", "--cluster", "generic", "sft.yaml"]) == 0
    assert "prepared 1,000" not in capfd.readouterr().out and list(Path("runs/.prepared").iterdir()) == [folder]
    # A folder is a list before the run is queued: what comes into it later is not of this run.
    assert read_yaml(Path("runs/sft/config.yaml"))["data"]["train"] == [
        str(here / "data" / n) for n in ("a.jsonl", "b.jsonl")
    ]


def test_it_suggests_new_tokens_and_prepares_with_them(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["prepare", "sft.yaml", "--suggest-tokens", "3"]) == 0
    found = Path("new_tokens.txt").read_text().splitlines()
    said = capfd.readouterr().out
    assert found and all(repr(text) in said for text in found)
    assert list(Path("runs").iterdir()) == []  # nothing is prepared
    assert launch.main(["prepare", "sft.yaml", "model.new_tokens=new_tokens.txt"]) == 0


def test_a_check_prepares_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["prepare", "sft.yaml", "--check"]) == 78
    assert "outlast: data.train is not prepared in " in capfd.readouterr().err
    assert list(Path("runs").iterdir()) == []
    assert launch.main(["prepare", "sft.yaml"]) == 0
    assert launch.main(["prepare", "sft.yaml", "--check"]) == 0
    assert "nothing was fetched" in capfd.readouterr().out


def test_a_model_that_is_not_whole(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["prepare", "sft.yaml"]) == 0
    model = here / "model"
    model.mkdir()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    for name, text in (
        ("config.json", json.dumps({"model_type": "llama", **SMALL})),
        ("model.safetensors.index.json", json.dumps(index)),
    ):
        (model / name).write_text(text)
    save_file({"a": np.zeros(9)}, model / "model-1.safetensors")
    words = ["prepare", "sft.yaml", "--check", "model.config=null", "model.path=model"]
    assert launch.main(words) == 78
    assert (
        f"model.path={model}: there is no model-2.safetensors: the model's folder is not whole"
        in capfd.readouterr().err
    )
    (model / "model-2.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert launch.main(words) == 78
    assert "model-2.safetensors: Error while deserializing header" in capfd.readouterr().err
    save_file({"b": np.zeros(9)}, model / "model-2.safetensors")
    assert launch.main(words) == 0
    assert f"model: {model}, 2 files of weights" in capfd.readouterr().out
    (model / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    assert launch.main(words) == 78  # code of the folder's own is not run


def test_too_many_rejects_are_refused_as_by_submit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["prepare", "sft.yaml", "data.max_rejects=0"]) == 78
    assert f"the first is {here}/data/a.jsonl:501: mend the rows that " in capfd.readouterr().err


OFFLINE = """
import os, socket, sys
from settings import ConfigError
from trainer import offline
offline.forbid()
for attempt in (
    lambda: socket.socket().connect(("192.0.2.1", 80)),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
):
    try:
        attempt()
    except ConfigError as error:
        print(error)
from huggingface_hub.constants import HF_HUB_OFFLINE
print(HF_HUB_OFFLINE, len(offline._ASKED))
"""


def test_a_process_that_may_fetch_nothing() -> None:
    root = Path(__file__).parents[2]
    shown = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=True, cwd=root)
    assert shown.stdout.splitlines() == [
        "something asks the network for ('192.0.2.1', 80)",
        "something asks the network for example.org",
        "something asks the network for ('192.0.2.1', 53)",
        "True 3",
    ]


def test_a_profile_says_where(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """All who run there find what one of them has prepared; a recipe's own word wins."""
    (here / "ours.yaml").write_text("data_cache: $PROJECT/outlast\njob: {launcher: fork}\n")
    monkeypatch.delenv("PROJECT", raising=False)
    command = ["--cluster", "./ours.yaml", "sft.yaml"]
    assert launch.main(["prepare", *command]) == 78
    assert capfd.readouterr().err == (
        f"outlast: profile {here / 'ours.yaml'}: data_cache=$PROJECT/outlast: PROJECT is not set in this shell\n"
    )
    monkeypatch.setenv("PROJECT", str(here / "project"))
    assert launch.main(["prepare", *command, "data.max_rejects=0.05"]) == 0
    assert list((here / "project" / "outlast").glob("*/manifest.json"))
    (here / "other").mkdir()
    colleague = ["--runs-dir", "other", *command, "data.max_rejects=0.05", "--check"]
    assert launch.main(["prepare", *colleague]) == 0
    assert launch.main(["prepare", *colleague, "data.cache=mine"]) == 78
    assert f"is not prepared in {here}/mine" in capfd.readouterr().err
    assert launch.main([*command, "data.max_rejects=0.05", "--no-submit", "--name", "x"]) == 0
    assert read_yaml(here / "runs" / "x" / "config.yaml")["data"]["cache"] == str(here / "project" / "outlast")
