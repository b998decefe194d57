"""Weights held near those that a run started from: EWC and L2-SP."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from settings import ConfigError, merge
from tests.trainer.check_loaded import assemble
from tests.trainer.data.samples import WORDS, texts, write_rows
from tests.trainer.ranks import Run, assert_cut_is_as_whole
from tests.trainer.test_engines import DDP, FSDP, OFFLOAD, zero
from trainer import config
from trainer.checkpoint.format import read_manifest
from trainer.data.batches import Batches
from trainer.data.prepared import Prepared
from trainer.layout import BatchLayout
from trainer.model.weights import build

NewRun = Callable[..., Run]
SEQUENCES = 9


@pytest.fixture
def shape(tmp_path: Path) -> dict[str, Any]:
    """Every run here has data of its own to keep. A large eps: else a gradient of nothing but noise is a whole step."""
    general = write_rows(tmp_path / "general.jsonl", texts(50)[20:])
    return {
        "model": {"config": {"attention_dropout": 0.1}},
        "train": {"steps": 6},
        "optim": {"lr": 1e-2, "eps": 1e-3, "schedule": "constant", "warmup": 0.0},
        "forgetting": {"strength": 30.0, "data": [general], "sequences": SEQUENCES},
        "evaluation": {"every": 3},
        "checkpoint": {"every": 100},
    }


def weights(run: Run) -> dict[str, torch.Tensor]:
    saved = assemble(run.path / "checkpoints" / run.checkpoints()[-1])
    return {key.removeprefix("weights/"): values for key, values in saved.items() if key.startswith("weights/")}


def artifact(run: Run) -> Path:
    return Path(json.loads((run.path / "forgetting.json").read_text())["artifact"])


def importance(folder: Path) -> dict[str, torch.Tensor]:
    """What stands in the artifact, read without our own reader."""
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in folder.glob("*.safetensors"):
        for key, values in load_file(file).items():
            if match := re.fullmatch(r"importance/(.+)\[(\d+):\d+\]", key):
                parts.setdefault(match[1], []).append((int(match[2]), values))
    return {name: torch.cat([v for _, v in sorted(found, key=lambda p: p[0])]) for name, found in parts.items()}


def by_autograd(run: Run) -> dict[str, torch.Tensor]:
    """The Fisher information by plain PyTorch, a sequence at a time."""
    settings = config.read(run.path / "config.yaml")
    model: Any = build(settings.model, settings.train.seed)
    model.set_attn_implementation("sdpa")
    model.eval()
    data = read_manifest(artifact(run)).data
    batches = Batches(Prepared.open(run.path.parent / ".prepared" / data), BatchLayout(1, 1, 1), 0, 0)
    total = {name: torch.zeros(parameter.numel()) for name, parameter in model.named_parameters()}
    tokens = 0
    for index in range(SEQUENCES):
        batch = batches.get(index).micro_batches[0]
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        model.zero_grad()
        functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum"
        ).backward()
        tokens += int((batch.labels != -100).sum())
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.flatten() ** 2
    return {name: values / tokens for name, values in total.items()}


ENGINES = {"ddp": DDP, "fsdp": FSDP, "zero 2": zero(2), "zero 3": zero(3)}


def test_every_engine_finds_the_same_importance_and_makes_the_same_steps(
    new_run: NewRun, shape: dict[str, Any]
) -> None:
    shape["model"]["config"]["attention_dropout"] = 0.0  # each rank draws its own
    free = new_run("free", **{**shape, "forgetting": None})
    assert free.go(1) == [0], free.log()
    one = new_run("one", **shape, data={"cache": None})
    assert one.go(1) == [0], one.log()
    expected, fisher = weights(one), by_autograd(one)
    assert any((free_weights - expected[name]).abs().max() > 1e-3 for name, free_weights in weights(free).items())
    for name, values in importance(artifact(one)).items():
        torch.testing.assert_close(values, fisher[name], rtol=1e-4, atol=1e-9)
    penalties = [event["penalty"] for event in one.events("penalty")]
    assert len(penalties) == 2 and all(penalty > 0 for penalty in penalties)
    for kind, engine in ENGINES.items():
        cache = str(one.path.parent / f"cache {kind}")
        run = new_run(kind, **merge(shape, {"engine": engine, "data": {"cache": cache}}))
        assert run.go(2) == [0, 0], run.log()
        assert artifact(run).parent == Path(cache) and artifact(run).name == artifact(one).name
        for name, values in weights(run).items():
            torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-6)
        for name, values in importance(artifact(run)).items():
            torch.testing.assert_close(values, fisher[name], rtol=1e-4, atol=1e-9)
        assert [event["penalty"] for event in run.events("penalty")] == pytest.approx(penalties, rel=1e-4)


CUT: list[Any] = [
    (DDP, 3, "fp32", {}),
    (FSDP, 2, "master32", {"device": "cpu"}),
    (zero(2), 2, "master32", {}),
    pytest.param(zero(3, **OFFLOAD), 2, "master32", {}, marks=pytest.mark.nightly),
    pytest.param(zero(3), 2, "master32", {"method": "l2sp"}, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("engine", "world", "precision", "more"), CUT, ids=str)
def test_cut_it_is_bit_identical(
    new_run: NewRun, shape: dict[str, Any], engine: dict[str, Any], world: int, precision: str, more: dict[str, Any]
) -> None:
    shape = merge(shape, {"engine": engine, "train": {"steps": 20, "precision": precision}, "forgetting": more})
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)
    assert_cut_is_as_whole(whole, cut, world)
    assert artifact(cut) == artifact(whole) and "found" in cut.log() + whole.log() + first_log(cut)
    penalties = {event["step"]: event["penalty"] for event in cut.events("penalty")}
    assert penalties == {event["step"]: event["penalty"] for event in whole.events("penalty")}


def first_log(run: Run) -> str:
    return (run.path / "attempt-1-rank-0.log").read_text()


def test_one_step_back_is_the_closed_form(new_run: NewRun, shape: dict[str, Any]) -> None:
    """A run of one step, and beside it one that nothing holds."""
    shape = merge(shape, {"train": {"steps": 1}, "evaluation": {"every": 0}})
    held, free = new_run("held", **shape), new_run("free", **{**shape, "forgetting": None})
    assert held.go(1) == [0] and free.go(1) == [0], held.log()
    settings = config.read(held.path / "config.yaml")
    start = {name: p.detach().flatten() for name, p in build(settings.model, settings.train.seed).named_parameters()}
    fisher, stepped, found = importance(artifact(held)), weights(free), weights(held)
    mean = sum(float(values.double().sum()) for values in fisher.values()) / sum(map(len, fisher.values()))
    for name, values in fisher.items():
        c = 1e-2 * 30.0 * values / mean
        torch.testing.assert_close(found[name], (stepped[name] + c * start[name]) / (1 + c), rtol=0, atol=1e-6)


def test_no_strength_makes_it_unstable(new_run: NewRun, shape: dict[str, Any]) -> None:
    run = new_run("run", **merge(shape, {"engine": zero(2), "forgetting": {"method": "l2sp", "strength": 1e12}}))
    assert run.go(2) == [0, 0], run.log()
    settings = config.read(run.path / "config.yaml")
    for name, parameter in build(settings.model, settings.train.seed).named_parameters():
        torch.testing.assert_close(weights(run)[name], parameter.detach().flatten(), rtol=0, atol=1e-6)


def test_a_step_that_is_not_finite_pulls_nothing(new_run: NewRun, shape: dict[str, Any]) -> None:
    """Two steps of which the second is skipped leave what one step leaves. The importance takes nine micro batches."""
    shape = merge(shape, {"evaluation": {"every": 0}, "train": {"micro_batch_size": 12}})
    two, one = (new_run(f"{n}", **merge(shape, {"train": {"steps": n}})) for n in (2, 1))
    assert one.go(1) == [0], one.log()  # its artifact is found by the other
    assert two.go(1, ["tests.trainer.with_a_nan", "0", "2", "1", str(two.path / "config.yaml")]) == [0], two.log()
    assert [event.get("skipped", False) for event in two.events("step")] == [False, True]
    expected = weights(one)
    for name, values in weights(two).items():
        assert torch.equal(values, expected[name])


def test_what_was_learnt_first_is_forgotten_less(new_run: NewRun, shape: dict[str, Any], tmp_path: Path) -> None:
    """A model of one text learns another one; the held-out loss is that of the first."""
    other = [{"text": " ".join(WORDS[-(i * k * k) % 16][::-1] for k in range(30)) + f" {i}"} for i in range(120)]
    changes = {"optim": {"lr": 3e-3, "schedule": "cosine", "eps": 1e-8}, "train": {"steps": 100}, "forgetting": None}
    first = new_run("first", **merge({**shape, "forgetting": None}, changes))
    assert first.go(1) == [0], first.log()
    shape = merge(merge(shape, changes), {"model": {"path": str(first.path / "export"), "config": None}})
    shape["data"] = {"train": [write_rows(tmp_path / "other.jsonl", other)]}
    general = {"data": [str(first.path / "train.jsonl")], "sequences": 64}
    runs = {"free": new_run("free", **shape)}
    for method in ("ewc", "l2sp"):
        runs[method] = new_run(method, **{**shape, "forgetting": {"method": method, "strength": 20.0, **general}})
    kept, learnt = {}, {}
    for name, run in runs.items():
        assert run.go(1) == [0], run.log()
        kept[name], learnt[name] = run.events("evaluation")[-1]["loss"], run.events("step")[-1]["loss"]
    assert max(kept["ewc"], kept["l2sp"]) < kept["free"] - 0.5, (kept, learnt)
    assert learnt["ewc"] < 3, learnt  # an untrained model has 6.2


def test_from_a_folder_the_anchor_is_read_again_and_from_a_checkpoint_it_is_kept(
    new_run: NewRun, shape: dict[str, Any]
) -> None:
    first = new_run("first", **{**shape, "forgetting": None})
    assert first.go(1) == [0], first.log()
    folder, checkpoint = first.path / "export", first.path / "checkpoints" / first.checkpoints()[-1]
    old = json.loads(json.dumps(shape))
    for name, start in (
        ("folder", {"model": {"path": str(folder), "config": None}}),
        ("fork", {"fork": str(checkpoint), "train": {"steps": 25}}),
    ):
        for method in ("ewc", "l2sp"):
            changes = merge(merge(old, {"train": {"steps": 20}, "forgetting": {"method": method}}), start)
            whole, cut = new_run(f"{name} {method} whole", **changes), new_run(f"{name} {method} cut", **changes)
            assert whole.go(1) == [0], whole.log()
            cut.stop_after(1, 2)
            assert cut.go(1) == [0], cut.log()
            assert cut.done()["sha256"] == whole.done()["sha256"]
            known = json.loads((cut.path / "forgetting.json").read_text())
            kinds = ["importance"] * (method == "ewc") + ["weights"] * (name == "fork")
            assert (read_manifest(Path(known["artifact"])).config["kinds"] if known["artifact"] else []) == kinds


@pytest.mark.parametrize("engine", [DDP, FSDP], ids=str)
def test_a_pull_is_launched_without_a_look_at_the_device(
    new_run: NewRun, shape: dict[str, Any], engine: dict[str, Any]
) -> None:
    run = new_run("run", **merge(shape, {"engine": engine, "train": {"steps": 3}, "evaluation": {"every": 0}}))
    assert run.go(2, argv=["tests.trainer.host_reads", str(run.path / "config.yaml")]) == [0, 0], run.log()
    assert [event["where"] for event in run.events("reads")] == [[], [], []]


def test_what_has_changed_since_is_refused_at_a_resume(new_run: NewRun, shape: dict[str, Any], tmp_path: Path) -> None:
    first = new_run("first", **{**shape, "forgetting": None})
    assert first.go(1) == [0], first.log()
    changes = merge(shape, {"model": {"path": str(first.path / "export"), "config": None}, "train": {"steps": 40}})
    run = new_run("run", **changes)
    run.stop_after(2, 2)
    known = run.path / "forgetting.json"
    folder, kept = artifact(run), known.read_text()

    def refused(what: str) -> None:
        assert run.go(2) == [78, 78], run.log()
        assert what in run.log(), run.log()

    file = folder / "rank-0001.safetensors"
    flip(file, -3)
    refused(f"{folder}: rank-0001.safetensors: block 0 (from byte 0) has a wrong bit: restore it, or start a new run")
    flip(file, -3)
    folder.rename(tmp_path / "away")
    refused(f"{folder}: MANIFEST.json is missing: restore it")
    (tmp_path / "away").rename(folder)
    known.unlink()
    refused("forgetting.json is missing: it says what the run's weights are held near to")
    known.write_text(kept[:-9])
    refused("forgetting.json is damaged")
    known.write_text(kept)
    known.write_text(kept.replace(json.loads(kept)["digest"], "0" * 32))
    refused(f"{folder} is not what this run was trained with")
    known.write_text(kept.replace(str(folder.parent), str(tmp_path / "nowhere")))  # found where data.cache is now
    model = first.path / "export" / "model.safetensors"
    flip(model, -3)
    refused("no longer holds the weights that the run started from")
    flip(model, -3)
    assert run.go(2) == [0, 0], run.log()


def test_another_run_finds_the_artifact_and_a_damaged_one_is_named(new_run: NewRun, shape: dict[str, Any]) -> None:
    one = new_run("one", **shape)
    assert one.go(2) == [0, 0], one.log()
    assert "read from 9 sequences" in one.log()
    two = new_run("two", **merge(shape, {"engine": FSDP, "optim": {"lr": 1e-3}, "forgetting": {"strength": 1.0}}))
    assert two.go(1) == [0], two.log()
    assert f"found how much each weight matters: {artifact(one)}" in two.log()
    other = new_run("other", **merge(shape, {"forgetting": {"sequences": 1000}}))
    assert other.go(1) == [0], other.log()
    assert artifact(other) != artifact(one) and "which is all that forgetting.data has of the 1000" in other.log()
    flip(artifact(one) / "rank-0000.safetensors", -3)
    three = new_run("three", **shape)
    assert three.go(2) == [78, 78]
    assert "has a wrong bit: remove this folder, and it is made again" in three.log()
    shutil.rmtree(artifact(one))
    assert three.go(2) == [0, 0], three.log()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


RECIPE: dict[str, Any] = {
    "name": "x",
    "model": {"path": "m"},
    "data": {"train": ["t.jsonl"], "seq_len": 8, "format": "chat"},
    "train": {"steps": 1, "global_batch_size": 1},
    "forgetting": {"strength": 1.0, "data": ["g.jsonl"]},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {}}, "x: forgetting.method=ewc is for full training: lora leaves the weights as they are"),
        ({"train": {"precision": "bf16"}}, "not with train.precision=bf16 and optim.name=adamw: take"),
        ({"optim": {"name": "adamw_8bit"}}, "not with train.precision=master32 and optim.name=adamw_8bit: take"),
        ({"forgetting": {"data": []}}, "x: forgetting.method=ewc needs forgetting.data: files of what is to be kept"),
        ({"forgetting": {"data": {"web": {"files": []}}}}, "x: forgetting.method=ewc needs forgetting.data"),
        ({"forgetting": {"strength": 0.0}}, "strength"),
        ({"forgetting": {"method": "ewc2"}}, "method"),
        (
            {"engine": zero(3, offload_optimizer={"device": "nvme", "nvme_path": "/n"})},
            "cannot reach weights on a disk",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_queue(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.resolve(merge(RECIPE, changes), "x")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_makes_the_run_what_it_is() -> None:
    """Where the data lies, and where the tensors do, may change; method, strength and sequences may not."""
    exact = config.exact_part(config.resolve(RECIPE, "x"))
    assert exact["forgetting"] == {"strength": 1.0, "method": "ewc", "sequences": 256}
    assert config.exact_part(config.resolve({**RECIPE, "forgetting": None}, "x"))["forgetting"] is None
    resolved = config.resolve(config.absolute_paths(RECIPE, Path("/recipes")), "x")
    assert resolved.to_keep["forgetting.data"].files == ["/recipes/g.jsonl"]
    named = merge(RECIPE, {"forgetting": {"data": {"web": {"files": ["w.jsonl"], "format": "text"}}}})
    web = config.resolve(config.absolute_paths(named, Path("/r")), "x").to_keep["forgetting.data.web"]
    assert web.kind == "text" and web.files == ["/r/w.jsonl"]
    own = str(Path(__file__).parents[2] / "recipes" / "demo" / "train.jsonl")
    with pytest.raises(ConfigError, match=r"x: forgetting.data: .*g\.jsonl"):
        config.check_files(config.resolve(merge(RECIPE, {"data": {"train": [own]}}), "x"), "x")
