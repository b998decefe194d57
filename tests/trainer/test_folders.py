"""The folders that a container must show its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from settings import ConfigError
from tests.trainer.data.samples import write_rows, write_tokenizer
from trainer import recipe


def test_the_folders_of_a_recipe_and_where_their_links_lead(tmp_path: Path) -> None:
    """As in the cache of Hugging Face, where a model's folder holds links to another one."""
    data, blobs, model = (tmp_path / name for name in ("data", "blobs", "model"))
    for folder in (data, model):
        folder.mkdir()
    write_tokenizer(blobs)
    for file in blobs.iterdir():
        (model / file.name).symlink_to(file)
    tree: dict[str, Any] = {
        "name": "x",
        "model": {"config": {"model_type": "llama"}, "tokenizer": str(model)},
        "data": {"train": [write_rows(data / "train.jsonl", [{"text": "a"}])], "seq_len": 8},
        "train": {"steps": 1, "global_batch_size": 2},
        "optim": {"lr": 1e-3},
    }
    ready = recipe.checked(tree, tmp_path / "runs" / "x", 2, "sft.yaml")
    assert ready.folders == [str(tmp_path / name) for name in ("blobs", "data", "model", "runs/.prepared")]
    tree["data"]["cache"] = str(tmp_path / "cache")
    assert str(tmp_path / "cache") in recipe.checked(tree, tmp_path / "runs" / "x", 2, "sft.yaml").folders


def test_files_count_from_the_recipe_and_may_begin_with_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOT_SET", raising=False)
    file = tmp_path / "sft.yaml"
    file.write_text(
        "model: {path: $SCRATCH/llama, tokenizer: ~/tokens}\ndata: {train: {a: {files: ['${SCRATCH}/a.jsonl', b.jsonl]}}}"
    )
    tree = recipe.read(file)
    assert tree["model"] == {"path": "/scratch/me/llama", "tokenizer": "/home/me/tokens"}
    assert tree["data"]["train"]["a"]["files"] == ["/scratch/me/a.jsonl", str(tmp_path / "b.jsonl")]
    file.write_text("data: {train: {a: {files: [$NOT_SET/a.jsonl]}}}")
    with pytest.raises(
        ConfigError, match=r"data\.train\.a\.files=\$NOT_SET/a\.jsonl: NOT_SET is not set in this shell"
    ):
        recipe.read(file)
