"""The export: a Hugging Face folder that transformers loads, written tensor by tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import launch
from settings import ConfigError, dump_yaml, to_plain
from slurm.config import JobConfig
from slurm.node.rendezvous import candidates, reserve_port
from tests.trainer import checkpoints
from tests.trainer.ranks import ROOT, Run
from tests.trainer.test_weights import MODELS
from tests.waiting import wait_until
from trainer import export as exports
from trainer.data.encode import end_tokens
from trainer.export import by_hand, export
from trainer.model import exported, lora
from trainer.model.model_card import base_name
from trainer.model.weights import build
from trainer.schema import TrainConfig

NewRun = Callable[..., Run]
SHAPE = {**MODELS["llama"], "vocab_size": 512}
LLAMA = {"config": {"model_type": "llama", **SHAPE}}
TOKENS = torch.arange(5, 37).reshape(2, 16)


def no_words(_: str) -> None:
    raise AssertionError("the model stood whole in memory")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits  # type: ignore[no-any-return]


def rounded(model: Any) -> Any:
    """Its parameters in bf16; its buffers stay, as they do when transformers loads."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def in_files(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    return found


def saved(folder: Path, model: torch.nn.Module, settings: TrainConfig) -> Path:
    """A run's folder with its config and a checkpoint of this model."""
    (folder / "config.yaml").write_text(dump_yaml(to_plain(settings)))
    return checkpoints.write_checkpoint(folder, {n: p for n, p in model.named_parameters() if p.requires_grad})


def small(folder: Path) -> tuple[TrainConfig, Path]:
    """A run's settings, and its checkpoint."""
    settings = checkpoints.settings(folder, LLAMA)
    return settings, saved(folder, build(settings.model, 1), settings)


# --- the same as transformers' own ----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "master32", "bf16"])
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_what_transformers_would_save(kind: str, precision: str, tmp_path: Path) -> None:
    shape = {"model_type": kind, **MODELS[kind], "vocab_size": 512}
    train = {"global_batch_size": 4, "steps": 9, "precision": precision}
    attention = "eager" if kind == "gemma2" else "sdpa"  # transformers' choice when it loads
    settings = checkpoints.settings(tmp_path, {"config": shape, "attention": attention}, train=train)
    model: Any = build(settings.model, 1, torch.bfloat16 if settings.train.bf16_weights else torch.float32)
    said: list[str] = []
    sha256 = export(settings, saved(tmp_path, model, settings), tmp_path / "export", said.append)
    assert len(said) == (kind == "mixtral"), "a mixture's experts are saved apart"
    if precision != "fp32":
        rounded(model)
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = in_files(tmp_path / "export"), in_files(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("export", "theirs")]
    assert configs[0] == configs[1]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.equal(logits(loaded), logits(model))
    assert sha256 == exported.fingerprint(dict(model.named_parameters()))


def test_large_models_lie_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "SHARD", 60_000)
    monkeypatch.setattr(exported, "PIECE", 1000)  # which divides no tensor
    settings = checkpoints.settings(tmp_path, LLAMA)
    model = rounded(build(settings.model, 1))
    checkpoint = saved(tmp_path, build(settings.model, 1), settings)
    export(settings, checkpoint, tmp_path / "export", no_words)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=60_000)
    ours, theirs = (
        json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("export", "theirs")
    )
    assert ours["metadata"] == theirs["metadata"] and ours["weight_map"].keys() == theirs["weight_map"].keys()
    sizes = [path.stat().st_size for path in (tmp_path / "export").glob("model-0000?-of-0000?.safetensors")]
    assert len(sizes) == len(set(ours["weight_map"].values())) > 2 and max(sizes) < 62_000
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "export")), logits(model))


def test_buffers_that_are_kept_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton, drawn = exported.skeleton, torch.arange(3)

    def with_buffer(*args: Any) -> torch.nn.Module:
        model = skeleton(*args)
        model.register_buffer("kept", drawn.clone())
        model.register_buffer("halved", torch.tensor(0.5, dtype=torch.bfloat16))
        return model

    settings, checkpoint = small(tmp_path)
    monkeypatch.setattr(exported, "skeleton", with_buffer)
    export(settings, checkpoint, tmp_path / "export", no_words)
    found = in_files(tmp_path / "export")
    assert torch.equal(found["kept"], drawn) and found["halved"].shape == () and float(found["halved"]) == 0.5


# --- LoRA -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("more", [{}, {"tokens": [5, 9]}, {"targets": ["q_proj", "down_proj"], "alpha": 3.0}], ids=str)
def test_adapters_are_merged_as_peft_does_layer_by_layer(tmp_path: Path, more: dict[str, Any], tied: bool) -> None:
    new = checkpoints.settings(tmp_path, {"config": {**LLAMA["config"], "tie_word_embeddings": tied, "mlp_bias": True}})
    base: Any = build(new.model, 1)
    base.save_pretrained(tmp_path / "base")
    settings = checkpoints.settings(tmp_path, {"path": str(tmp_path / "base")}, lora={"r": 4, **more})
    assert settings.lora is not None
    adapters = lora.inject(base, settings.lora, 3)
    with torch.no_grad():
        for parameter in (parameter for parameter in base.parameters() if parameter.requires_grad):
            parameter.normal_()
    checkpoint = saved(tmp_path, base, settings)
    held = sum(isinstance(module, BaseTunerLayer) for module in base.modules())
    assert len(lora.layers(base)) == held > 0
    export(settings, checkpoint, tmp_path / "export", no_words, torch.float32)
    merged = adapters.merge_and_unload()
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    named = dict(merged.named_parameters())
    assert named.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(parameter, named[name]) for name, parameter in loaded.named_parameters())
    assert not any(
        torch.equal(named[name], p) for name, p in build(settings.model, 1).named_parameters() if "q_proj" in name
    )


# --- of a real run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", None), ("adam32", None), pytest.param("master32", "float32", marks=pytest.mark.nightly)],
)
def test_logits_are_those_of_the_trainer(new_run: NewRun, precision: str, dtype: str | None) -> None:
    train = {"steps": 6, "precision": precision}
    run = new_run("run", train=train, model={"attention": "sdpa"}, data={"format": "chat"}, evaluation={"every": 0})
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "the run goes on"}]
    (run.path / "train.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 200)
    assert run.go(2) == [0, 0], run.log()
    folder = by_hand(run.path, None, dtype) if dtype else run.path / "export"
    done = run.done()
    (run.path / "DONE").unlink()
    argv = ["tests.trainer.logits_of_run", str(run.path / "config.yaml"), str(folder)]
    assert run.go(2, argv=argv) == [0, 0], run.log()
    assert "the same after step 6" in run.log()
    about = json.loads((folder / "provenance.json").read_text())
    assert (about["steps"], about["attempts"], about["base_model"]) == (6, 1, None)
    assert about["tokens_seen"] == sum(tokens for _, tokens in run.history("tokens"))
    assert dtype or about["weights"]["sha256"] == done["sha256"]
    card = (folder / "README.md").read_text()
    assert about["data"] in card and "apply_chat_template" in card and str(run.path) not in card + json.dumps(about)


def test_a_chat_ends_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    settings = checkpoints.settings(tmp_path, LLAMA, data={"train": ["a"], "seq_len": 8, "format": "chat"})
    checkpoint = saved(tmp_path, build(settings.model, 1), settings)
    export(settings, checkpoint, tmp_path / "export", no_words)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    ends = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.generation_config.eos_token_id == ends == end_tokens(tmp_path / "tokenizer", "chat")
    assert end_tokens(tmp_path / "tokenizer", "text") == ends[1:]


def test_a_folders_own_words_on_generation_stay(tmp_path: Path) -> None:
    new = checkpoints.settings(tmp_path, LLAMA)
    model: Any = build(new.model, 1)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 7, "top_k": 3, "do_sample": False})
    )
    settings = checkpoints.settings(tmp_path, {"path": str(tmp_path / "base")})
    export(settings, saved(tmp_path, model, settings), tmp_path / "export", no_words)
    words = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert words == {"eos_token_id": [7, *end_tokens(tmp_path / "tokenizer", "text")], "top_k": 3, "do_sample": False}
    assert json.loads((tmp_path / "export" / "provenance.json").read_text())["base_model"] == "base"


def test_a_base_model_is_called_as_people_do(tmp_path: Path) -> None:
    cached = "/home/me/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0123abc"
    assert base_name(checkpoints.settings(tmp_path, {"path": cached}).model) == "meta-llama/Llama-3.1-8B"


# --- whole or not at all --------------------------------------------------------------------------------


def test_a_wrong_bit_leaves_what_was_there(tmp_path: Path) -> None:
    settings, checkpoint = small(tmp_path)
    (tmp_path / "claims").mkdir()
    folder = by_hand(tmp_path, None, None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert folder == tmp_path / "export" and by_hand(tmp_path, 9, "float32").name == "export-step-9-float32"
    by_hand(tmp_path, None, None)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}  # again: the same bytes
    path = checkpoint / "rank-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ConfigError, match="step-00000009-e0001: rank-0001.safetensors: block .* bit: take another"):
        by_hand(tmp_path, None, None)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not list(tmp_path.glob(".export*"))


def test_a_killed_ones_leftovers_go_and_anothers_stay(tmp_path: Path) -> None:
    settings, checkpoint = small(tmp_path)
    for name in (".export-hand-1", ".export-run-1", ".export-run-2.old", ".export-step-9-run-1"):
        (tmp_path / name).mkdir()
    export(settings, checkpoint, tmp_path / "export", no_words)
    assert sorted(path.name for path in tmp_path.glob(".export*")) == [".export-hand-1", ".export-step-9-run-1"]


def test_a_folder_that_is_a_link_to_other_storage_is_replaced(tmp_path: Path) -> None:
    settings, checkpoint = small(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "export").symlink_to("elsewhere")
    export(settings, checkpoint, tmp_path / "export", no_words)
    assert (tmp_path / "export" / "provenance.json").exists() and not (tmp_path / "export").is_symlink()
    assert not list(tmp_path.glob(".export*")) and not list((tmp_path / "elsewhere").iterdir())


def test_what_others_may_not_read_they_read_in_no_export(tmp_path: Path) -> None:
    """A link in somebody's model folder may lead to what this user alone may read."""
    settings, checkpoint = small(tmp_path)
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    secret.chmod(0o600)
    (Path(settings.model.tokenizer_folder) / "vocab.txt").symlink_to(secret)
    export(settings, checkpoint, tmp_path / "export", no_words)
    assert (tmp_path / "export" / "vocab.txt").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("mode", "file"), [(0o700, 0o600), (0o750, 0o640)])
def test_who_may_read_the_run_may_read_its_export(tmp_path: Path, mode: int, file: int) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(mode)
    small(run)
    before = os.umask(0o022)
    try:
        folder = by_hand(run, None, None)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == mode
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {file}


# --- the verb -------------------------------------------------------------------------------------------


def test_launch_export(tmp_path: Path, capfd: pytest.CaptureFixture[str], quick_imports: None) -> None:
    run = tmp_path / "runs" / "sft"
    run.mkdir(parents=True)
    settings = checkpoints.settings(run, LLAMA)
    model = build(settings.model, 1)
    saved(run, model, settings)
    (run / "code").symlink_to(ROOT)
    job = JobConfig(name="sft", cluster="local")
    (run / "job.yaml").write_text(dump_yaml(to_plain(job)))
    words = ["export", "sft", "--runs-dir", str(run.parent)]
    assert launch.main([*words, "--dtype", "float32"]) == 0, capfd.readouterr()
    assert f"{run}/export-float32: step 9, 51,360 weights in float32" in capfd.readouterr().out
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(run / "export-float32")), logits(model))
    capfd.readouterr()  # what transformers says while it loads
    assert launch.main([*words, "--step", "8"]) == 78
    assert capfd.readouterr().err == f"outlast: there is no checkpoint of step 8 in {run}: steps that are there: 9\n"
    (run / "job.yaml").write_text(dump_yaml({**to_plain(job), "command": ["python", "train.py"]}))
    assert launch.main(words) == 78
    assert capfd.readouterr().err.startswith("outlast: sft runs a command of its own")
    (run / "job.yaml").write_text(dump_yaml({**to_plain(job), "rank_python": "/image/python3"}))
    assert launch.main(words) == 78
    assert "there is no /image/python3 here: export where the ranks run: /image/python3 -P -m" in capfd.readouterr().err


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exports.main([str(tmp_path)]) == 78
    assert capsys.readouterr().err == f"outlast: {tmp_path}: there is no config.yaml: this is no run of the trainer\n"
    assert exports.main([str(tmp_path), "--dtype", "fp8"]) == 78
    assert capsys.readouterr().err == "outlast: --dtype fp8: take float32 or bf16\n"
    settings = checkpoints.settings(tmp_path, LLAMA)
    other = checkpoints.settings(tmp_path, {"config": {**LLAMA["config"], "hidden_size": 16}})
    saved(tmp_path, build(other.model, 1), settings)
    assert exports.main([str(tmp_path)]) == 78
    told = "the model has model.embed_tokens.weight of shape [512, 32], the checkpoint has shape [512, 16]"
    assert capsys.readouterr().err == f"outlast: {told}\n"


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2},
        pytest.param(
            {"vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
            marks=pytest.mark.nightly,  # 110 million with tied embeddings
        ),
    ],
    ids=["small", "110M"],
)
def test_less_than_its_largest_tensor_ever_stands_in_memory(tmp_path: Path, shape: dict[str, int]) -> None:
    model = {"model_type": "llama", **shape, "num_attention_heads": 8, "tie_word_embeddings": True}
    large = tmp_path / "large"
    large.mkdir()
    settings = checkpoints.settings(large, {"config": model})
    weights = dict(build(settings.model, 1).named_parameters())
    checkpoints.write_checkpoint(large, weights)
    largest = max(weight.nbytes for weight in weights.values())
    argv = [sys.executable, "-m", "tests.trainer.peak_of_export", str(tmp_path), json.dumps(model)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("grew by ")[1]) <= 1.2 * largest


# --- served ---------------------------------------------------------------------------------------------


@pytest.mark.nightly  # needs pip install "transformers[serving]"
def test_transformers_own_server_answers_a_chat(new_run: NewRun) -> None:
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    train = {"steps": 80, "precision": "fp32"}
    run = new_run("run", train=train, data={"format": "chat", "seq_len": 24}, evaluation={"every": 0})
    chat = [
        {"role": "user", "content": "what goes on"},
        {"role": "assistant", "content": "the run goes on until it is done"},
    ]
    (run.path / "train.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 200)
    assert run.go(2) == [0, 0], run.log()
    model = str(run.path / "export")
    port = reserve_port(candidates(model))
    number = port.getsockname()[1]
    port.close()
    program = str(Path(sys.executable).with_name("transformers"))
    server = subprocess.Popen([program, "serve", model, "--device", "cpu", "--port", str(number)])
    try:
        url = f"http://localhost:{number}"
        wait_until(lambda: answers(f"{url}/health"), "the server")
        body = {"model": model, "messages": chat[:1], "max_tokens": 40, "temperature": 0.0, "stream": False}
        request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            (choice,) = json.load(answer)["choices"]
        assert choice["message"]["content"].strip() == chat[1]["content"] and choice["finish_reason"] == "stop"
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(url):
            return True
    except OSError:
        return False
