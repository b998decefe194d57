"""How fast data is prepared, beside the tokenizer alone and datasets.map, and how much memory that takes.

One process takes them in turn on the same file; the tokenizer alone gets the same batches and nobody reads what it
makes of them. The peak is that of a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import Unable, peak_memory
from benchmarks.rows import Row
from recipes import demo_data
from trainer.data.encode import load_tokenizer
from trainer.data.prepare import prepare
from trainer.data.rows import Rows, batched
from trainer.sources import Data, Source

ROOT = Path(__file__).parent.parent
GOAL = 0.95
PEAK_GOAL = 1000.0  # MB
AGAIN_GOAL = 0.1  # seconds

PREPARE = """
import sys
from pathlib import Path
root, rows, tokenizer, cache = sys.argv[1:]
sys.path.insert(0, root)
from trainer.data.prepare import prepare
from trainer.sources import Data
prepare(Data([rows], seq_len=2048), tokenizer, Path(cache), "train", say=lambda _: None)
"""


def measure(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        demo_data.make(Path(folder))
        size = 30 if quick else 1000
        return [*rates(Path(folder), 3 if quick else 7), peak(Path(folder), size), again(Path(folder), size)]


def rates(folder: Path, rounds: int) -> list[Row]:
    file, tokenizer = sample(folder, 12), folder / "tokenizer"
    runs: dict[str, Callable[[int], Any]] = {
        "ours": lambda number: prepare(
            Data([str(file)], seq_len=2048), str(tokenizer), folder / f"ours-{number}", "train", lambda _: None
        ),
        "datasets.map": lambda number: mapped(file, tokenizer, folder / f"theirs-{number}"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, "alone", "rows")}
    for number in range(rounds):
        for name, run in runs.items():
            began = time.monotonic()
            run(number)
            seconds[name].append(time.monotonic() - began)
        spent, whole = alone(file, tokenizer)
        seconds["alone"].append(spent)
        seconds["rows"].append(whole - spent)
    ours, theirs, least = (12 / median(seconds[name]) for name in ("ours", "datasets.map", "alone"))
    share = ours / least
    taken, encoded, rows = (median(seconds[name]) for name in ("ours", "alone", "rows"))
    cause = (
        f"measured: {encoded:.2f} of {taken:.2f} s are the tokenizer, {rows:.2f} the parsing and checking of rows, "
        "part of it beside the tokenizer's threads"
    )
    return [
        Row("preparation", "MB/s", ours, "datasets.map", theirs, "encode_batch_fast", least, ours / theirs),
        Row("of the tokenizer alone", "", share, goal=f"at least {GOAL:g}", met=share >= GOAL, cause=cause),
    ]


def alone(file: Path, tokenizer: Path) -> tuple[float, float]:
    """Seconds that the tokenizer's own threads take for all batches, and those with what makes the batches."""
    library, spent, start = load_tokenizer(tokenizer), 0.0, time.monotonic()
    for batch in batched(Rows(Source([str(file)], "text"))):
        texts = [row.value for row in batch]
        began = time.monotonic()
        library.encode_batch_fast(texts)
        spent += time.monotonic() - began
    return spent, time.monotonic() - start


def mapped(file: Path, tokenizer: Path, cache: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(cache))
    rows.map(lambda batch: {"ids": encode(batch["text"])["input_ids"]}, batched=True, remove_columns=["text"])


def peak(folder: Path, size: int) -> Row:
    made = folder / "peak"
    words = [ROOT, sample(folder, size), folder / "tokenizer", made]
    memory = peak_memory([sys.executable, "-c", PREPARE, *map(str, words)])
    if not made.is_dir():
        raise Unable("data: the preparation failed")
    return Row(f"peak for {size} MB", "MB", memory, goal=f"below {PEAK_GOAL:g} MB", met=memory < PEAK_GOAL)


def again(folder: Path, size: int) -> Row:
    """What `peak` prepared, found and opened: from the call until the arrays can be read, without imports. The first
    of these calls is not counted: it hashes the file, which had just been written when it was prepared."""
    data, tokenizer = Data([str(folder / f"{size}.jsonl")], seq_len=2048), str(folder / "tokenizer")
    seconds = []
    for _ in range(8):
        began = time.monotonic()
        prepared = prepare(data, tokenizer, folder / "peak", "train", lambda _: None)
        prepared.read("tokens", 0, 1)
        seconds.append(time.monotonic() - began)
    taken = median(seconds[1:])
    return Row(f"found prepared, {size} MB", "s", taken, goal=f"at most {AGAIN_GOAL:g} s", met=taken <= AGAIN_GOAL)


def sample(folder: Path, size: int) -> Path:
    """So many MB of rows, no two alike."""
    texts = [json.loads(line)["text"] for line in (folder / "train.jsonl").read_text().splitlines()]
    file, written, number = folder / f"{size}.jsonl", 0, 0
    with file.open("w") as out:
        while written < size * 1e6:
            written += out.write(json.dumps({"text": f"{texts[number % len(texts)]} {number}"}) + "\n")
            number += 1
    return file
