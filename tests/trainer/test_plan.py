"""The plan: what fits, what it holds and how long it takes; and that its numbers are those of the trainer."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import launch
from benchmarks.plan import published
from settings import ConfigError, dump_yaml
from trainer.engines.ddp.settings import Ddp
from trainer.engines.deepspeed.settings import Deepspeed
from trainer.engines.fsdp.settings import Fsdp
from trainer.plan import founding, report
from trainer.plan.architecture import read
from trainer.plan.devices import device
from trainer.plan.layouts import planned
from trainer.plan.state import Sizes
from trainer.plan.time import Time
from trainer.schema import EveryK, Forgetting, Lora, Optim, Train, TrainConfig
from trainer.shape import Model
from trainer.sources import Data

ROOT = Path(__file__).parent.parent.parent
LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}
LLAMA_8B = {
    **LLAMA_70B,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
KINDS = [
    LLAMA_8B,
    {"model_type": "qwen3_moe"},
    {"model_type": "gemma2"},
    {"model_type": "gpt_neox"},
    {"model_type": "unheard", **{k: v for k, v in LLAMA_8B.items() if k != "model_type"}},
]


def zero(stage: int, **more: Any) -> Deepspeed:
    return Deepspeed({"zero_optimization": {"stage": stage, **more}})


CPU = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
ENGINES = [
    Ddp(),
    Fsdp(),
    Fsdp(hybrid=True),
    Fsdp(offload=True),
    Fsdp(reduce_each=True),
    Fsdp(reshard=False),
    zero(1),
    zero(2),
    zero(3),
    zero(3, **CPU),
]


def recipe(engine: Any, length: int = 2048, **train: Any) -> TrainConfig:
    values = {"global_batch_size": 1024, "steps": 10, "micro_batch_size": 1, **train}
    return TrainConfig(
        name="x",
        model=Model(config={}),
        data=Data(train=[], seq_len=length),
        train=Train(**values),
        optim=Optim(lr=1e-5),
        engine=engine,
    )


recipes = st.builds(
    lambda engine, length, mode, precision, micro: recipe(
        engine, length, gradient_checkpointing=mode, micro_batch_size=micro,
        precision="master32" if isinstance(engine, Deepspeed) else precision,
    ),
    st.sampled_from(ENGINES), st.sampled_from([128, 1024, 8192]), st.sampled_from([False, True, "selective", EveryK(2)]),
    st.sampled_from(["fp32", "master32", "adam32", "bf16"]), st.sampled_from([1, 2, 4]),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(recipes, st.sampled_from(KINDS), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 8]))
def test_more_gpus_never_need_more_each_nor_a_longer_sequence_less(
    config: TrainConfig, kind: dict[str, Any], nodes: int, gpus: int
) -> None:
    model, of = read(kind), device("h100-80")
    one = planned(model, config, nodes, gpus, of, 10)
    assert math.isclose(sum(one.memory.device.values()), one.memory.gpu) and min(one.memory.device.values()) > 0
    assert math.isclose(sum(one.memory.host.values()), one.memory.node)
    more = planned(model, config, 2 * nodes, gpus, of, 10)
    if nodes * gpus > 1:  # a second GPU brings NCCL, and buckets that stay
        assert more.memory.gpu <= one.memory.gpu * (1 + 1e-9)
    longer = planned(
        model, replace(config, data=replace(config.data, seq_len=2 * config.data.seq_len)), nodes, gpus, of, 10
    )
    assert longer.memory.gpu >= one.memory.gpu and longer.time.step > one.time.step
    again = planned(
        model, replace(config, train=replace(config.train, gradient_checkpointing=True)), nodes, gpus, of, 10
    )
    assert again.memory.gpu <= one.memory.gpu * (1 + 1e-9) or config.train.gradient_checkpointing is not False


def test_state_is_what_the_precision_recipe_says() -> None:
    for precision, total in (("fp32", 16), ("master32", 16), ("adam32", 12), ("bf16", 8)):
        sizes = Sizes.of(recipe(Fsdp(), precision=precision))
        assert sizes.weights + sizes.gradients + sizes.moments == total
    one = planned(read(LLAMA_8B), recipe(zero(3), gradient_checkpointing=True), 1, 8, device("h100-80"), 1)
    assert one.memory.device["weights"] == pytest.approx(6 / 8 * 8_030_261_248)  # bf16, and fp32 beside it


def test_what_the_weights_are_held_by_and_adapters() -> None:
    model, of = read(LLAMA_8B), device("h100-80")
    plain = recipe(Fsdp(), gradient_checkpointing=True)
    held = planned(model, replace(plain, forgetting=Forgetting(strength=1.0)), 1, 8, of, 1)
    assert held.memory.device["anchor"] == 8 * model.parameters / 8
    hybrid = replace(plain, engine=Fsdp(hybrid=True), forgetting=Forgetting(strength=1.0))
    assert planned(model, hybrid, 4, 4, of, 1).memory.device["anchor"] == 8 * model.parameters / 4
    away = planned(model, replace(plain, forgetting=Forgetting(strength=1.0, method="l2sp", device="cpu")), 1, 8, of, 1)
    assert away.memory.host["anchor"] == 4 * model.parameters and "anchor" not in away.memory.device
    adapters = planned(model, recipe(Ddp()), 1, 1, of, 1).memory.checkpoint
    lora = planned(model, replace(recipe(Ddp()), lora=Lora(r=64)), 1, 1, of, 1)
    assert lora.memory.checkpoint == 12 * 64 * model.sides < adapters / 10
    quantized = planned(
        model, replace(recipe(Ddp(), gradient_checkpointing=True), lora=Lora(r=64, quantize="nf4")), 1, 1, of, 1
    )
    assert quantized.memory.device["weights"] == pytest.approx(
        0.5159 * 6.979e9 + 2 * 1.051e9 + 4 * 64 * model.sides, rel=0.01
    )


# --- the verb ---------------------------------------------------------------------------------------------


@pytest.fixture
def llama_70b(tmp_path: Path) -> str:
    (tmp_path / "70b.json").write_text(json.dumps(LLAMA_70B))
    return str(tmp_path / "70b.json")


def test_it_loads_no_torch_and_says_whether_it_fits(llama_70b: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"import sys, launch; print(launch.main(['plan', {llama_70b!r}, '--nodes', '1024', '--gpus', '8', 'train.global_batch_size=8192', 'train.gradient_checkpointing=true']), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.startswith("It fits: ") and shown.stdout.endswith("0 False\n")


IMPOSSIBLE = [
    ("--nodes 1 --gpus 8 --gpus-of a100-80", LLAMA_70B),
    ("--nodes 1 --gpus 8 --gpus-of a100-80 train.precision=bf16", LLAMA_70B),
    ("--nodes 2 --gpus 8 --gpus-of h100-80 engine.kind=ddp", LLAMA_70B),
    ("--nodes 1 --gpus 4 --gpus-of a100-40", LLAMA_70B),
    ("--nodes 1 --gpus 8 --gpus-of l4", LLAMA_8B),
    ("--nodes 1 --gpus 1 --gpus-of a100-40", LLAMA_8B),
    ("--nodes 1 --gpus 1 --gpus-of h100-80 engine.kind=ddp", LLAMA_8B),
    ("--nodes 1 --gpus 8 --gpus-of h100-80 data.seq_len=131072 train.gradient_checkpointing=false", LLAMA_8B),
    ("--nodes 1 --gpus 8 --gpus-of h100-80 train.micro_batch_size=8 data.seq_len=16384", LLAMA_8B),
    ("--nodes 1 --gpus 8 --gpus-of h100-80", {"model_type": "mixtral"}),
    ("--nodes 2 --gpus 4 --gpus-of a100-40", {"model_type": "qwen3_moe", "num_hidden_layers": 48}),
    ("--nodes 1 --gpus 8 --gpus-of v100-32", {"model_type": "gpt_neox"}),
]


@pytest.mark.parametrize(("words", "shape"), IMPOSSIBLE)
def test_what_cannot_fit_ends_with_78_and_a_layout_that_a_second_plan_accepts(
    words: str,
    shape: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shape.json").write_text(json.dumps(shape))
    assert launch.main(["plan", "shape.json", *words.split()]) == 78
    said = capsys.readouterr().out
    assert said.startswith("It does not fit: ")
    line = next(line for line in reversed(said.splitlines()) if line.startswith("launch.py plan shape.json "))
    again = [word for word in words.split()[4:] if not word.startswith(("train.micro", "train.grad", "engine"))]
    assert launch.main([*line.replace("'", "").replace("{every_k: ", "{every_k:").split()[1:], *again]) == 0, line


def test_a_recipe_and_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {
        "model": {"config": LLAMA_8B, "tokenizer": "."},
        "data": {"train": ["data.jsonl"], "seq_len": 2048},
        "train": {"epochs": 3, "global_batch_size": 64},
        "optim": {"lr": 1e-5},
        "engine": {"kind": "fsdp"},
    }
    Path("sft.yaml").write_text(dump_yaml(tree))
    assert launch.main(["plan", "sft.yaml", "--nodes", "2", "--gpus", "8", "--examples", "6800x2048", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["length"] == {"steps": 318, "from": "6,800 examples x 2,048 tokens, packed"}
    plan = said["plan"]
    assert plan["tokens"] == 318 * 64 * 2048 and plan["gpu_hours"] == pytest.approx(16 * plan["seconds"] / 3600)
    flops = plan["tokens"] * said["model"]["flops_per_token"]
    assert plan["seconds"] == pytest.approx(flops / (16 * 989.4e12 * plan["mfu"])), "the one formula"
    assert said["host_short_bytes"] == 0
    for mem, short in (("1G", plan["host_bytes"] - 2**30), ("2048", plan["host_bytes"] - 2**31), ("9T", 0), ("0", 0)):
        words = ["plan", "sft.yaml", "--nodes", "2", "--gpus", "8", "--examples", "6800x2048", f"job.mem='{mem}'"]
        assert launch.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["host_short_bytes"] == short, mem
    assert launch.main([*words, "job.mem=1G"]) == 0
    assert "; job.mem=1G is " in capsys.readouterr().out
    assert launch.main(["plan", "sft.yaml", "--gpus-of", "h1000"]) == 78
    assert capsys.readouterr().err == "outlast: --gpus-of h1000: did you mean h100-80?\n"
    assert (
        launch.main(
            ["plan", "sft.yaml", "--gpus-of", "a100-40,h200", "--nodes", "2", "train.gradient_checkpointing=true"]
        )
        == 0
    )
    assert "2 x 8 h200" in capsys.readouterr().out
    Path("data.jsonl").write_text("x" * 8192 * 64)
    assert launch.main(["plan", "sft.yaml", "train.gradient_checkpointing=true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length"]["from"].startswith("1 MB of files at 4 bytes a token")


def test_the_users_own_runs_say_how_fast_it_is(tmp_path: Path) -> None:
    config = {
        "name": "x",
        "model": {"config": LLAMA_8B, "tokenizer": "."},
        "data": {"train": ["x"], "seq_len": 2048},
        "train": {"steps": 10, "global_batch_size": 16, "gradient_checkpointing": True},
        "optim": {"lr": 1e-5},
        "engine": {"kind": "fsdp"},
    }
    plain = {**config, "train": {**config["train"], "gradient_checkpointing": False}}  # type: ignore[dict-item]
    job = {"nodes": 1, "gpus_per_node": 8}
    (tmp_path / "before").mkdir()
    begun = {"device": "NVIDIA H100 80GB HBM3", "world_size": 8, "local_world_size": 8}

    def ran(tree: dict[str, Any], seconds: float) -> None:
        """Its MFU, of documents that are short, is another than the plan's, of whole sequences."""
        (tmp_path / "before" / "config.yaml").write_text(dump_yaml(tree))
        lines = [json.dumps({"event": "resume", "epoch": 1, "step": 0, **begun})]
        step = {"event": "step", "epoch": 1, "mfu": 0.2, "seconds": seconds - 1, "data_wait_seconds": 1.0}
        lines += [json.dumps({**step, "step": number}) for number in range(9)]
        (tmp_path / "before" / "events.jsonl").write_text("\n".join(lines) + '\n{"event": "st')

    def planned(tree: dict[str, Any]) -> Time:
        return report.made(dict(tree), job, "x", "h100-80", None, tmp_path).now.time

    lora = {**config, "lora": {"r": 8}}
    offloaded = {**config, "engine": {"kind": "fsdp", "offload": True}}
    for tree in (config, lora, offloaded):
        ran(tree, 40.0)
        time = planned(tree)
        assert time.step == pytest.approx(40) and "of your run before" in time.source, tree
        others = [one for one in (config, lora, offloaded) if one is not tree]
        assert not any("your run" in planned(one).source for one in others)
    ran(config, 4.0)
    assert planned(plain).step == pytest.approx(4.0 / 1.27)
    assert "your run" not in report.made(dict(config), job, "x", "a100-80", None, tmp_path).now.time.source
    other = {**config, "engine": {"kind": "ddp"}}
    assert "your run" not in report.made(other, job, "x", "h100-80", None, tmp_path).now.time.source


def test_submit_refuses_what_cannot_fit() -> None:
    config = {
        "name": "x",
        "model": {"config": LLAMA_70B},
        "data": {"train": ["x"], "seq_len": 2048},
        "train": {"steps": 1, "global_batch_size": 8},
        "optim": {"lr": 1e-5},
    }
    text = dump_yaml(config)
    with pytest.raises(
        ConfigError, match="it does not fit: .* GiB on each GPU, a100-80 has 79.2: take --nodes .*--force"
    ):
        report.check(text, 1, 8, "a100-80", Path("x"))
    report.check(text, 1, 8, "a100-80", Path("x"), force=True)


def test_a_dry_run_is_refused_where_the_profile_says_which_gpus_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("x")
    tree = {
        "model": {"config": LLAMA_70B, "tokenizer": "."},
        "data": {"train": ["x.txt"], "seq_len": 2048},
        "train": {"steps": 1, "global_batch_size": 64},
        "optim": {"lr": 1e-5},
    }
    Path("sft.yaml").write_text(dump_yaml(tree))
    Path("site.yaml").write_text("name: site\ngpus_per_node: 8\ngpu: a100-80\n")
    words = ["--cluster", "site.yaml", "--dry-run", "--nodes", "1", "--gpus", "8", "--walltime", "1:00:00", "sft.yaml"]
    assert launch.main(words) == 78
    refused = capsys.readouterr().err
    assert refused.startswith("outlast: it does not fit: ") and refused.count("\n") == 1
    layout = refused.partition(": take ")[2].partition(" (--force")[0].split()
    assert launch.main([*words[:3], "--walltime", "1:00:00", "sft.yaml", *layout]) == 0, layout
    assert launch.main([*words, "--force"]) == 0


def test_the_page_of_the_founding_table_is_what_the_command_prints() -> None:
    assert (ROOT / "docs" / "founding-table.md").read_text() == founding.page() + "\n"
    rows = {
        line.split("|")[1].strip(" *"): line.split("|")[-2].strip(" *")
        for line in founding.page().splitlines()
        if line.startswith("| **")
    }
    assert rows["70B, 8 x a100-80"] == "refuted: no recipe fits" and rows["7B, 4 x a100-40"] == "stands"


def test_the_page_shows_what_others_have_published_beside_the_plan_of_now() -> None:
    assert published.page() in (ROOT / "docs" / "plan.md").read_text()
