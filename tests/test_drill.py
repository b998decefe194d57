"""The drill's own judgement: what it makes small, and what it lets pass."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import launch
from durable import append_line
from envs.drill.drill import _leave, at_random, rehearse
from envs.drill.faults import KILL, PREEMPTION, TIME_LIMIT, Fault, Scene
from envs.drill.place import Site, patience
from envs.drill.shrink import ROWS, first_rows, shrink, small_config, small_model
from envs.drill.stage import Row, Stage, judge
from envs.drill.watch import history, weights
from settings import ConfigError, dump_yaml
from slurm.rundir import RunDir
from trainer import config
from trainer.engines.fsdp.settings import Fsdp
from trainer.model.model_config import new_config
from trainer.plan import batch_layout
from trainer.schema import Lora
from trainer.shape import Model

LARGE = {
    "llama": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256}
    | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}},
    "mixtral": {"hidden_size": 4096, "num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 1600, "n_layer": 48, "n_head": 25, "vocab_size": 50257},
    "qwen2": {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"layer_types": ["full_attention"] * 28, "max_window_layers": 28},
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_model_becomes_a_small_one_that_can_be_built(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "torch_dtype": "bfloat16", **LARGE[kind]}))
    small = small_model({"path": str(tmp_path), "attention": "eager"})
    assert small["attention"] == "eager" and small["tokenizer"] == str(tmp_path) and "path" not in small
    built = new_config(Model(**small))
    assert built.hidden_size == 64 and built.num_hidden_layers == 2
    assert built.hidden_size % built.num_attention_heads == 0
    assert built.vocab_size == LARGE[kind].get("vocab_size", built.vocab_size)
    assert small_config(small["config"]) == small["config"]


def test_a_small_recipe_is_whole_and_reads_a_part_of_the_data(tmp_path: Path) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(3 * ROWS)))
    (tmp_path / "parts").mkdir()
    tree = {
        "name": "big",
        "model": {"config": {"model_type": "llama", **LARGE["llama"]}, "tokenizer": "t"},
        "data": {"train": [str(rows)], "evaluation": [str(rows)], "seq_len": 8192, "format": "text"},
        "train": {"epochs": 3, "global_batch_size": 1024, "micro_batch_size": 2, "seed": 7, "precision": "master32"},
        "optim": {"lr": 1e-5},
        "engine": {"kind": "fsdp"},
        "checkpoint": {"every": 1000, "keep": 5},
        "fork": "elsewhere",
    }
    small = config.resolve(shrink(tree, tmp_path / "parts", 4, 200), "small")
    assert batch_layout(small.train, 4).gradient_accumulation_steps == 1
    assert (small.train.steps, small.train.seed, small.train.precision) == (200, 7, "master32")
    assert small.engine == Fsdp() and small.fork is None and small.data.seq_len == 64
    assert len(Path(small.data.train[0]).read_text().splitlines()) == ROWS
    assert small.data.train != small.data.evaluation and small.checkpoint.every < 20
    with pytest.raises(ConfigError, match="big: a drill needs a recipe with model, data and train"):
        shrink({"name": "big"}, tmp_path, 4, 200)


def test_first_rows_are_those_of_what_a_recipe_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "small").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "data" / name).write_text('{"text": "x"}\n' * (ROWS + 1))
    for names in ([str(tmp_path / "data")], [f"{tmp_path}/data/*.jsonl"]):
        made = [Path(file) for file in first_rows(names, tmp_path / "small", "train")]
        assert [len(file.read_text().splitlines()) for file in made] == [ROWS, ROWS]
    (tmp_path / "c.csv").write_text("text\nx\n")
    with pytest.raises(ConfigError, match=r"c.csv: a rehearsal takes first rows of .jsonl and .txt"):
        first_rows([str(tmp_path / "c.csv")], tmp_path / "small", "train")


def test_a_small_recipe_keeps_the_rate_that_the_large_one_would_have(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    data = {"train": [str(rows)], "seq_len": 8, "format": "chat"}
    tree = {"name": "big", "model": {"path": str(tmp_path)}, "data": data, "train": {"global_batch_size": 4}}
    (tmp_path / "parts").mkdir()
    small = config.resolve(shrink(tree, tmp_path / "parts", 4, 200), "small")
    assert small.model.path is None and small.optim.lr == 2e-5
    quantized = shrink({**tree, "lora": {"r": 8, "quantize": "nf4"}}, tmp_path / "parts", 4, 200)
    small = config.resolve(quantized, "small")  # new weights are quantized by nobody
    assert small.optim.lr == 1e-4 and small.lora == Lora(r=8)


def test_a_small_recipe_keeps_its_sources_and_no_stages(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n" * (2 * ROWS))
    (tmp_path / "parts").mkdir()
    sources = {name: {"files": [str(rows)], "format": name} for name in ("text", "chat")}
    tree = {
        "name": "big",
        "model": {"config": {"model_type": "llama", **LARGE["llama"]}, "tokenizer": "t"},
        "data": {"train": sources, "evaluation": sources, "seq_len": 8192},
        "train": {"global_batch_size": 1024},
        "stages": [{"name": "one", "mixture": {"text": 1}, "tokens": 1e9}],
        "optim": {"lr": 1e-5},
        "evaluation": {"every": 9, "limits": {"text": 0.1}},
    }
    small = config.resolve(shrink(tree, tmp_path / "parts", 4, 200), "small")
    assert small.stages is None and small.train.steps == 200
    files = [file for source in small.data.sources.values() for file in source.files]
    assert len({*files, str(rows)}) == 5 and all(Path(file).read_text() == "{}\n" * ROWS for file in files)


class Told:
    """A run folder in which a run has gone through one fault."""

    def __init__(
        self, folder: Path, cause: str = "crash", reached: int = 17, resumed: int = 10, job: str = "2"
    ) -> None:
        self.run = RunDir(folder)
        (folder / "claims").mkdir(parents=True)
        (folder / "config.yaml").write_text(dump_yaml({"checkpoint": {"every": 10}}))
        self.claim(1, "1")
        self.tell(1, "resume", 0)
        self.steps(1, 1, reached)
        end = {"attempt": 1, "cause": cause, "reason": "why", "job_id": "1"}
        append_line(folder / "attempts.jsonl", end)
        self.claim(2, job)
        self.tell(2, "resume", resumed)
        self.steps(2, resumed + 1, 20)

    def claim(self, epoch: int, job: str) -> None:
        claim = {"epoch": epoch, "job_id": job, "restart_count": 0, "time": 0.0}
        (self.run.claims_dir / f"{epoch:04d}.json").write_text(json.dumps(claim))

    def tell(self, epoch: int, kind: str, step: int, **values: Any) -> None:
        append_line(
            self.run.events, {"epoch": epoch, "event": kind, "step": step, "time": step + 5.0 * epoch, **values}
        )

    def steps(self, epoch: int, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.tell(epoch, "step", step, loss=1 / step, grad_norm=1.0, hash=step)

    def judged(self, fault: Fault) -> Row:
        row = Row(fault.number, fault.text)
        judge(Scene(Site(), self.run, 1, random.Random(0)), fault, row)
        return row


def test_a_crash_that_loses_what_it_may(tmp_path: Path) -> None:
    row = Told(tmp_path / "run").judged(KILL)
    assert row.wrong == [] and (row.cause, row.lost, row.went_on) == ("crash", 7, "next job")
    assert row.back == 11 + 10 - (17 + 5)


@pytest.mark.parametrize(
    ("told", "fault", "words"),
    [
        ({"cause": "hang"}, KILL, "expected crash: why"),
        ({"reached": 17, "resumed": 0}, KILL, "17 steps were lost, 10 may be"),
        ({"cause": "timeout"}, TIME_LIMIT, "7 steps were lost, 0 may be"),
        ({"cause": "cancel", "resumed": 17}, PREEMPTION, "expected preemption: why"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, told: dict[str, Any], fault: Fault, words: str) -> None:
    assert words in Told(tmp_path / "run", **told).judged(fault).wrong


def test_a_run_that_does_not_go_on_is_wrong(tmp_path: Path) -> None:
    told = Told(tmp_path / "run")
    told.run.events.write_text("".join(told.run.events.read_text().splitlines(keepends=True)[:18]))
    told.run.cancel("no progress", "three attempts")
    assert "three attempts" in told.judged(KILL).wrong[0]


def test_only_the_steps_that_count_are_compared(tmp_path: Path) -> None:
    run = Told(tmp_path / "run").run
    assert history(run, "hash") == [(step, step) for step in range(1, 21)]
    (run.path / "DONE").write_text('{"sha256": "ab"}')
    assert weights(run) == "ab"


def test_programmes() -> None:
    assert at_random(20, 1) == at_random(20, 1) != at_random(20, 2)
    assert len(at_random(20, 1).courses[0].faults) == 20


@pytest.mark.parametrize("words", [{"all": True}, {"random": 3}])
def test_what_hurts_nodes_is_refused_at_a_site(tmp_path: Path, words: dict[str, Any]) -> None:
    asked = {"cluster": "lumi-g", "all": False, "random": None, "json": False, "runs_dir": str(tmp_path), **words}
    with pytest.raises(ConfigError, match="--all and --random hurt nodes"):
        rehearse({"name": "x", "job": {}}, {}, Namespace(**asked))
    assert not list(tmp_path.iterdir())


# --- on a site --------------------------------------------------------------------------------------------


class Queue(Site):
    """A site whose queue is a list."""

    def __init__(self, waiting: list[str]) -> None:
        super().__init__("lumi-g")
        object.__setattr__(self, "waiting", waiting)

    def ask(self, *argv: str) -> str:
        command, *ids = argv
        assert command == "scancel"
        for job in ids:
            self.waiting.remove(job)  # type: ignore[attr-defined]
        return ""

    def jobs(self) -> list[str]:
        return list(self.waiting)  # type: ignore[attr-defined]


def test_runs_of_a_site_are_submitted_by_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[tuple[str, ...]] = []
    monkeypatch.setattr(Stage, "launch", lambda stage, *words: typed.append(words))
    Stage(Site("/profiles/ours.yaml"), tmp_path, {}).start("pace")
    assert typed == [(f"{tmp_path}/pace.yaml", "--cluster", "/profiles/ours.yaml")]
    assert patience(Site()) > 86400 > patience(Stage(None, tmp_path, {}).place)  # type: ignore[arg-type]


def test_a_profile_that_is_not_there_is_told_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("name: x\n")
    assert launch.main(["drill", "x.yaml", "--cluster", "lumi-h"]) == 78
    assert "--cluster lumi-h: there is no such profile: did you mean lumi-" in capsys.readouterr().err
    assert not list(Path("runs").glob("drill-*"))


def test_nothing_of_a_drill_that_has_ended_stays_in_a_sites_queue(tmp_path: Path) -> None:
    waiting = ["812", "813", "900"]
    for name, jobs in (("chain", ("812", "813")), ("whole", ("814",))):
        (tmp_path / name).mkdir()
        for job in jobs:
            RunDir(tmp_path / name).record_job(job, after=None)
    _leave(Queue(waiting), tmp_path, Console())
    assert waiting == ["900"]
