"""The recipes of the regulator's case: each passes a dry run, both methods differ in the method alone, and 7b fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import launch
from recipes.regulator import data, general
from settings import dump_yaml, merge, read_yaml, to_plain
from tests.trainer.data.samples import texts
from tests.trainer.ranks import Run, Zygote
from trainer import config, recipe
from trainer.data.rows import Rows
from trainer.model.new_tokens import grown
from trainer.schema import TrainConfig
from trainer.sources import Source

REGULATOR = Path(__file__).parent.parent.parent / "recipes" / "regulator"
NAMES = sorted(path.stem for path in REGULATOR.glob("*.yaml"))
BASES = {"base": "regulator-base", "gpu_base": "regulator-gpu-base"}
FOUNDING = {"schedule": "cosine", "warmup": 0.05}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes with little data, and with bases that have a shape and a tokenizer, but no weights."""
    root = tmp_path_factory.mktemp("place")
    recipes = root / "recipes" / "regulator"
    shutil.copytree(REGULATOR, recipes, ignore=shutil.ignore_patterns("demo", "whole", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(general.prose, "prose", lambda: ((f"{n}.py", [row["text"]]) for n, row in enumerate(texts(400))))
        for name, short in (("demo", True), ("whole", False)):
            data.make(recipes / name, {"train": 40, "dev": 8, "test": 8}, 20, 0, short, seed=1)
            general.make(recipes / name / "general")
    for name, run in BASES.items():
        export = root / "runs" / run / "export"
        shutil.copytree(recipes / "demo" / "general" / "tokenizer", export)
        (export / "config.json").write_text(json.dumps(read_yaml(recipes / f"{name}.yaml")["model"]["config"]))
    return root


def resolved(place: Path, name: str) -> TrainConfig:
    tree = recipe.read(place / "recipes" / "regulator" / f"{name}.yaml")
    return config.resolve({key: value for key, value in tree.items() if key != "job"}, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_passes(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "recipes" / "regulator" / f"{name}.yaml"
    assert launch.main(["--dry-run", "--cluster", "generic", "--runs-dir", str(place / "r"), str(path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#!") and "global batch" in shown.err


def test_both_methods_differ_in_the_method_alone(place: Path) -> None:
    trees = [read_yaml(place / "recipes" / "regulator" / f"{name}.yaml") for name in ("full", "lora")]
    for tree in trees:
        del tree["name"], tree["optim"]["lr"], tree["stages"][-1]["optim"]
    lora = trees[1].pop("lora")
    assert dump_yaml(trees[0]) == dump_yaml(trees[1])
    width = read_yaml(REGULATOR / "base.yaml")["model"]["config"]["hidden_size"]
    assert lora == {"r": width // 4, "tokens": "new"}  # the rank is a quarter of the width, and the new rows learn


@pytest.mark.parametrize("name", ["full", "lora", "gpu", "7b"])
def test_the_founding_method(place: Path, name: str) -> None:
    settings = resolved(place, name)
    small = name in ("full", "lora")  # batch 64 would be too few steps
    assert settings.train.global_batch_size == (16 if small else 64) and settings.train.precision == "master32"
    assert {key: getattr(settings.optim, key) for key in FOUNDING} == FOUNDING
    assert settings.stages is not None
    learn = settings.stages[-1]
    assert learn.name == "task" and learn.epochs == (None if small else 3)
    kinds = {key: source.kind for key, source in settings.data.sources.items()}
    assert kinds["train.task"] == "completion" and kinds["train.language"] == "text"
    if name != "gpu":
        engine: Any = settings.engine
        assert engine.json["zero_optimization"]["stage"] == 2 and settings.train.bf16_passes
    if name == "7b":
        assert learn.optim.lr == 2e-5 and settings.train.micro_batch_size == 2


def test_new_tokens_shorten_a_report(place: Path) -> None:
    """Short examples have 300 tokens at most with the real tokenizer; this one was trained on a few pages, and has more."""
    settings = resolved(place, "full")
    old = grown(settings.model.__class__(path=settings.model.path, new_tokens=["C01.00"])).tokenizer
    new = grown(settings.model).tokenizer
    rows = [row.value for row in Rows(Source([str(place / "recipes/regulator/demo/train.jsonl")], "completion"))]
    before, after = (
        [len(tokenizer.encode(value.prompt + value.completion).ids) for value in rows] for tokenizer in (old, new)
    )
    assert sum(after) < 0.8 * sum(before)
    assert all(digit in new.encode("TREA=8412").tokens for digit in "8412")  # numbers are read digit by digit


def test_the_founding_case_fits_eight_gpus_of_80_gb(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "recipes" / "regulator" / "7b.yaml"
    words = ["--nodes", "1", "--gpus", "8", "--cluster", "generic", "--gpus-of", "a100-80", "--examples", "6800x998"]
    assert launch.main(["plan", str(path), *words]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("It fits: 27.9 of 79.2 GiB on each of 8 GPUs (a100-80)")
    assert "global batch 64 = 2 micro x 4 accumulation x 8 ranks" in shown


def test_the_recipe_for_one_gpu_in_reduced_form(place: Path, tmp_path: Path, zygote: Zygote) -> None:
    """gpu_base.yaml, gpu.yaml and its answers on whole reports, by one rank: thin layers, few steps, the same stages."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    batch = {"train": {"global_batch_size": 4}}
    base = reduced(place, tmp_path, zygote, "gpu_base", batch, model={"config": {**shape, "num_key_value_heads": 4}})
    assert base.go(1) == [0], base.log()
    run = reduced(place, tmp_path, zygote, "gpu", batch, model={"path": str(base.path / "export")})
    assert run.go(1) == [0], run.log()
    assert [event["step"] for event in run.events("stage")] == [0, 2, 4] and run.history()[-1] == (6,)
    test = place / "recipes" / "regulator" / "whole" / "test.jsonl"
    argv = [str(run.path), f"--data={test}", "--new-tokens=8"]
    assert run.go(1, ["trainer.evaluate", *argv]) == [0], run.log()
    scores = json.loads((run.path / "evaluation" / "test" / "scores.json").read_text())
    assert scores["rows"] == 8 and 0 <= scores["scores"]["f1_micro"]["value"] <= 1


def reduced(place: Path, folder: Path, zygote: Zygote, name: str, *changes: dict[str, Any], **more: Any) -> Run:
    """A run of a recipe whose stages have two steps each, in a folder of its own."""
    tree = recipe.read(place / "recipes" / "regulator" / f"{name}.yaml")
    del tree["job"]
    if "stages" in tree:
        for stage in tree["stages"]:
            stage.pop("epochs", None)
            stage["steps"] = 2
    else:
        del tree["train"]["epochs"]
        tree["train"]["steps"] = 2
    for change in (*changes, more):
        tree = merge(tree, change)
    path = folder / name
    path.mkdir()
    (path / "config.yaml").write_text(dump_yaml(to_plain(config.resolve(tree, name))))
    return Run(zygote, path)
