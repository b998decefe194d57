"""Answers are those of the exported model to the prompts as the training formatted them, cut or not."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import launch
from durable import read_lines
from settings import ConfigError, dump_yaml, read_yaml, to_plain
from tests.trainer import checkpoints
from tests.trainer.data.samples import WORDS, write_rows
from tests.trainer.ranks import ROOT, Run
from trainer.data.encode import encoder as encode_for_training
from trainer.evaluate import rows, table
from trainer.evaluate.__main__ import main
from trainer.evaluate.evaluate import Evaluation, Wanted
from trainer.evaluate.generate import batches
from trainer.export import by_hand
from trainer.model.weights import build
from trainer.sources import Source

NewRun = Callable[..., Run]
SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of 4 to 40 words, all different; half of them break a rule."""
    draw = random.Random(seed)
    out = []
    for number in range(count):
        words = " ".join(draw.choices(WORDS, k=draw.randint(4, 40)))
        labels = draw.choice([[], ["limits"], ["limits", "run"], []])
        reference = f"{json.dumps({'violations': labels})}\nso.\n\nDirective: {'stop 4.5' if labels else 'none'}."
        about = {"difficulty": draw.choice(["plain", "edge"])}
        out.append({"id": f"test-{number:03d}", "prompt": f"{number} {words}\n", "completion": reference, **about})
    return out


def no_words(_: str) -> None:
    pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint of random weights."""
    return a_run(tmp_path / "runs" / "full", format="completion")


def a_run(folder: Path, **data: Any) -> Path:
    folder.mkdir(parents=True)
    train = write_rows(folder / "train.jsonl", examples(40, seed=1))
    held_out = write_rows(folder / "dev.jsonl", examples(10, seed=2))
    about = {"train": [train], "evaluation": {"dev": {"files": [held_out]}}, "seq_len": 64, **data}
    settings = checkpoints.settings(folder, {"config": SHAPE}, data=about)
    (folder / "config.yaml").write_text(dump_yaml(to_plain(settings)))
    model = build(settings.model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # far from even: the likeliest token is no matter of the last bit
    checkpoints.write_checkpoint(folder, dict(model.named_parameters()))
    return folder


def test_each_answer_is_what_the_export_writes_to_its_prompt_alone(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches and padding change nothing; the model is gone afterwards, the files tell where the scores come from."""
    data = write_rows(run / "test.v2.jsonl", examples(70))
    run.chmod(0o750)
    assert main([str(run), "--data", data, "--new-tokens", "12", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    folder = run / "evaluation" / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "answers.jsonl", "scores.json"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        0o640
    }  # who may read the run, and nobody else
    assert json.loads((folder / "scores.json").read_text()) == scores
    model: Any = AutoModelForCausalLM.from_pretrained(by_hand(run, None, None), dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "export")
    lines = read_lines(folder / "answers.jsonl")
    assert [line["id"] for line in lines] == [row["id"] for row in examples(70)]
    for line in lines[::5]:
        ids = tokenizer(line["prompt"], return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, ids.input_ids.shape[1] :]
        assert line["answer"] == tokenizer.decode(out, skip_special_tokens=True)
        assert line["tokens"] == len(out) and line["ended"] == (out[-1] in model.generation_config.eos_token_id)
    about = scores["about"]
    assert (about["run"], about["step"], about["checkpoint"]) == ("full", 9, "step-00000009-e0001")
    assert about["data"]["rows"] == scores["rows"] == 70 and about["data"]["file"] == "test.v2.jsonl"
    assert str(run) not in json.dumps(scores)
    assert set(scores["by_group"]) == {"edge", "plain"} and set(scores["baselines"]) >= {"none", "all", "nearest"}
    assert scores["parse_failures"] == 70 and scores["scores"]["f1_micro"]["value"] == 0.0  # random weights
    assert scores["references"]["f1_micro"]["value"] == scores["references"]["rouge_l"]["value"] == 1.0
    text = io.StringIO()
    table.show(scores, Console(file=text, width=160))
    assert "which count as none: 70" in text.getvalue() and "F1 micro" in text.getvalue()


def test_prompts_are_those_of_the_training(tmp_path: Path) -> None:
    """Token for token what stands before the first one that the loss counts."""
    pairs = [{"prompt": row["prompt"], "completion": row["completion"]} for row in examples(20)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                *[{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}] * (number % 2),
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for number, row in enumerate(examples(20))
    ]
    checkpoints.settings(tmp_path, {"config": SHAPE})  # makes the tokenizer
    for kind, given in (("completion", pairs), ("chat", chats)):
        source = Source([write_rows(tmp_path / f"{kind}.jsonl", given)], kind)  # type: ignore[arg-type]
        found = rows.read(source)
        asked = rows.encoder(tmp_path / "tokenizer", kind)(found)
        encode, _ = encode_for_training(tmp_path / "tokenizer", kind)  # type: ignore[arg-type]
        for values, prompt, row in zip(given, asked, found, strict=True):
            value: Any = row.prompt
            if kind == "chat":
                value = value._replace(messages=values["messages"])
            (trained,) = encode([value])
            assert not isinstance(trained, str)
            last_turn = bytes(trained.loss).rstrip(b"\0").rfind(b"\0") + 1  # of a chat's turns the last one is asked
            assert (
                prompt == list(trained.ids[:last_turn]) and row.reference == examples(20)[int(row.id) - 1]["completion"]
            )


def test_an_evaluation_that_was_killed_goes_on_to_the_same_numbers(new_run: NewRun) -> None:
    trained = new_run("full", train={"steps": 2, "epochs": None}, evaluation={"every": 1, "batches": 1})
    assert trained.go(1) == [0], trained.log()
    data = write_rows(trained.path / "test.jsonl", examples(150))
    argv = [str(trained.path), f"--data={data}", "--new-tokens=4"]
    folder = trained.path / "evaluation" / "test"
    assert trained.go(1, ["tests.trainer.evaluate.with_a_kill", "2", *argv]) == [-9]
    assert not (folder / "scores.json").exists()
    there = read_lines(folder / "answers.jsonl")
    assert 64 < len(there) < 128  # a batch of 64, and a part of the second
    assert trained.go(1, ["trainer.evaluate", *argv]) == [0], trained.log()
    assert f"{len(there)} of 150 rows are answered already" in trained.log()
    cut = [(folder / name).read_bytes() for name in ("scores.json", "answers.jsonl")]
    folder.rename(folder.with_name("cut"))
    assert trained.go(1, ["trainer.evaluate", *argv]) == [0], trained.log()
    assert [(folder / name).read_bytes() for name in ("scores.json", "answers.jsonl")] == cut
    scores = json.loads(cut[0])
    assert scores["losses"][""]["last_step"] == 2 and scores["losses"][""]["first_step"] == 1


def test_answers_to_something_else_are_set_aside(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, said = Evaluation(run, Wanted(new_tokens=4)), []
    first.run(no_words)
    assert first.folder.path.name == "dev" and first.about["data"]["rows"] == 10
    scored = (first.folder.path / "scores.json").read_bytes()
    Evaluation(run, Wanted(new_tokens=4)).run(said.append)  # nothing is asked again
    assert said == [] and (first.folder.path / "scores.json").read_bytes() == scored
    Evaluation(run, Wanted(new_tokens=5)).run(said.append)
    assert "they lie in dev-1 now" in said[0]
    assert (run / "evaluation" / "dev-1" / "scores.json").read_bytes() == scored
    assert Evaluation(run, Wanted(step=9, limit=3)).folder.path.name == "dev-step-9-first-3"


def test_plain_text_answers_long_prompts_and_lost_training_data(run: Path) -> None:
    (run / "train.jsonl").unlink()
    plain = [{"prompt": "go on\n", "completion": "until it is done"}, {"prompt": "run " * 400, "completion": "no room"}]
    wanted = Wanted(write_rows(run / "plain.jsonl", plain), new_tokens=3)
    said: list[str] = []
    scores = Evaluation(run, wanted).run(said.append)
    assert set(scores["scores"]) == {"exact_match", "rouge_l"} and scores["labels"] is None
    assert scores["too_long"] == 1 and scores["by_group"] == {} and scores["baselines"] == {}
    assert scores["not_ended"] <= 1  # what was not asked was not cut
    assert Evaluation(run, wanted).run(no_words)["too_long"] == 1  # from the answers that are there
    assert scores["references"]["exact_match"]["value"] == 1.0
    assert any("no baselines from the training data" in line and "train.jsonl" in line for line in said)
    text = io.StringIO()
    table.show(scores, Console(file=text, width=100))
    assert "and count as not answered: 1" in text.getvalue()


@pytest.mark.parametrize(
    ("data", "wanted", "words"),
    [
        ([{"prompt": "a"}], {}, "test.jsonl line 1: no column 'completion'"),
        ([{"id": 1, "prompt": "a", "completion": "b"}] * 2, {}, "the id 1 stands there twice"),
        ([b"\n"], {}, "there is no row"),
        ([*examples(2), {"prompt": "a", "completion": "b"}], {}, "1 of 3 references have no labels, 3 the first"),
        (examples(2), {"step": 7}, "full has no weights of step 7; steps: 9"),
        (None, {"data": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
    ],
)
def test_mistakes_are_one_line(run: Path, data: Any, wanted: dict[str, Any], words: str) -> None:
    file = {} if data is None else {"data": write_rows(run / "test.jsonl", data)}
    with pytest.raises(ConfigError) as error:
        Evaluation(run, Wanted(**{**file, **wanted}))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (run / "evaluation").exists()


def test_a_run_without_prompts_says_what_to_give(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "config.yaml"
    tree = read_yaml(path)
    path.write_text(dump_yaml({**tree, "data": {**tree["data"], "evaluation": []}}))
    assert main([str(run)]) == 78 and "--data test.jsonl" in capsys.readouterr().err
    assert main([str(run / "elsewhere")]) == 78 and "there is no config.yaml" in capsys.readouterr().err
    assert main([str(run), "--limit", "0"]) == 78 and "--limit 0: 1 at least" in capsys.readouterr().err


def test_launch_evaluate(run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run's Python and the code of now; what is told where it cannot be here."""
    python = run / "python"

    def by(script: str, **job: Any) -> list[str]:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        (run / "job.yaml").write_text(dump_yaml({"name": "full", "rank_python": str(python), **job}))
        return ["evaluate", "full", "--data", "test.jsonl", "--limit", "9", "--json", "--runs-dir", str(run.parent)]

    monkeypatch.chdir(run)
    assert launch.main(by('echo "$PYTHONPATH" "$@"; exit 3')) == 3
    words = f"-P -m trainer.evaluate {run} --data={run}/test.jsonl --limit=9 --json\n"
    assert capfd.readouterr().out.removeprefix(str(ROOT)).endswith(f" {words}")
    assert launch.main(by("kill -9 $$")) == 137
    told = capfd.readouterr().err
    job = f"launch.py --nodes 1 --gpus 1 --name full-evaluate -- python launch.py evaluate {run}"
    assert told.startswith("outlast: signal 9 has ended evaluate: what is answered stays") and job in told
    assert launch.main(by("true", rank_python="/image/python3")) == 78
    assert "there is no /image/python3 here: evaluate where the ranks run" in capfd.readouterr().err
    assert launch.main(by("true", command=["python", "train.py"])) == 78
    assert capfd.readouterr().err.startswith("outlast: full runs a command of its own")


def test_a_long_prompt_cuts_nobody_elses_answer() -> None:
    assert batches([5, 90, 100, 7, 99, 0, 6], context=100, size=2, most=20) == [[4], [1], [3, 6], [0]]
    assert batches([5, 80], context=100, size=2, most=20) == [[1, 0]]
