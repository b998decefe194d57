"""How long a run takes, planned (`launch.py plan`) and measured, on the CPU: whole trainings with a core for each rank.

The plan knows two runs of another shape (`plan --calibrate`), one on one rank and one on two; nothing else here.
Seconds are those of all steps with the wait for their batches.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.plan.cases import Case
from benchmarks.plan.measure import run as run_ranks
from benchmarks.rows import Row
from recipes.demo_data import TOKENIZER_CONFIG, train_tokenizer
from settings import dump_yaml, to_plain
from trainer.engines.fsdp.settings import Fsdp
from trainer.plan.measured import calibrate, compared

GOAL = 0.1
TEXT = "the run goes on through limits and failures until it is done and every sample counts"
KNOWN = [(Case("7M", 256, 4, precision="fp32"), 10), (Case("7M", 256, 4, ranks=2, precision="fp32"), 10)]
"""With their steps."""
PLANNED = [
    (Case("7M", 512, 2, precision="fp32", recompute=True), 8),
    (Case("12M", 256, 4, precision="fp32"), 8),
    (Case("34M", 256, 2, precision="fp32"), 6),
    (Case("34M, Qwen 3", 256, 2, ranks=2, precision="fp32"), 6),
    (Case("34M", 256, 2, ranks=2, precision="fp32", engine=Fsdp()), 6),
    (Case("20M, NeoX", 256, 4, ranks=2, precision="fp32", engine=Fsdp(), recompute=True), 6),
]


def measure(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="hours-") as folder:
        runs = Path(folder)
        data, tokenizer = written(runs)
        for number, (case, steps) in enumerate(KNOWN):
            run = recipe(case, steps, runs / f"known-{number}", data, tokenizer)
            train(case, run)
            print(calibrate(str(run), runs), flush=True)
        rows, errors = [], []
        for number, (case, steps) in enumerate(PLANNED[::3] if quick else PLANNED):
            run = recipe(case, steps, runs / f"run-{number}", data, tokenizer)
            train(case, run)
            hours = next(row for row in compared(run)[0] if row.unit == "h")
            assert hours.measured is not None and hours.error is not None
            errors.append(hours.error)
            name = f"{steps} steps of {case}: plan {hours.error:+.1%}"
            rows.append(Row(name, "s", 3600 * hours.planned, "", None, "measured", 3600 * hours.measured))
    middle = median(map(abs, errors))
    last = Row("error of the planned hours, median", "%", 100 * middle, goal=f"at most {GOAL:.0%}", met=middle <= GOAL)
    return [*rows, replace(last, cause="" if last.met else "see the rows")]


def written(folder: Path) -> tuple[Path, Path]:
    """Documents of 1 to 500 words, and a tokenizer for them."""
    tokenizer, data = folder / "tokenizer", folder / "train.jsonl"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(train_tokenizer([TEXT]).to_str())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    words = TEXT.split()
    texts = (" ".join(words[i * k % 16] for k in range(1 + i * 37 % 500)) for i in range(400))
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return data, tokenizer


def recipe(case: Case, steps: int, run: Path, data: Path, tokenizer: Path) -> Path:
    """The folder of a run of a case."""
    settings = case.settings
    tree = {
        "name": run.name,
        "model": {"config": case.config, "tokenizer": str(tokenizer)},
        "data": {"train": [str(data)], "seq_len": case.tokens},
        "train": {**to_plain(settings.train), "steps": steps},
        "optim": {"lr": settings.optim.lr},
        "engine": to_plain(case.engine),
        "checkpoint": {"every": steps},
        "tensorboard": False,
    }
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(tree))
    return run


def train(case: Case, run: Path) -> None:
    """To its end. Raises RuntimeError."""
    run_ranks(case, ["trainer", str(run / "config.yaml")], {})
