"""A preparation that is killed goes on, and comes out the same."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from trainer.data.prepare import prepare
from trainer.sources import Data

PROGRAM = """
import os, random, signal, sys
from pathlib import Path
import trainer.data.prepare as preparation
from trainer.sources import Data

rows, tokenizer, cache, seed = sys.argv[1:]
chance = random.Random(int(seed))
left, point = chance.randint(1, 3), chance.choice(["written", "torn", "commit"])
preparation.COMMIT_SECONDS = 0.0
write_rows, write_atomic = preparation._write_rows, preparation.write_atomic

def die(here):
    global left
    left -= here == point or point == "torn" and here == "written"
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

def writing(batch, results, data, dtype, files, done):
    before = {name: file.tell() for name, file in files.items()}
    write_rows(batch, results, data, dtype, files, done)
    if point == "torn" and left == 1:  # what reached the disk of a batch need be neither its end nor its beginning
        for name in chance.sample(sorted(files), 3):
            files[name].flush()
            begin = chance.randint(before[name], files[name].tell())
            os.pwrite(files[name].fileno(), b"torn" * chance.randint(1, 99), begin)
    die("written")

def committing(path, text):
    (path.parent / f".{path.name}.0123").write_text(text[:9])
    die("commit")
    write_atomic(path, text)

preparation._write_rows, preparation.write_atomic = writing, committing
preparation.prepare(Data([rows], seq_len=16, max_rejects=1.0), tokenizer, Path(cache), "train", say=print)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_five_times_at_random(tmp_path: Path, seed: int) -> None:
    rows: list[Any] = [row for i in range(9) for row in (*texts(1000), b"not json", {"text": i})]
    file, tokenizer = write_rows(tmp_path / "train.jsonl", rows), write_tokenizer(tmp_path / "tokenizer")
    whole = prepare(Data([file], seq_len=16, max_rejects=1.0), tokenizer, tmp_path / "whole", "train", lambda _: None)
    chance = random.Random(seed)
    went_on = 0
    for _ in range(5):
        argv = [sys.executable, "-c", PROGRAM, file, tokenizer, str(tmp_path / "cut"), str(chance.randrange(1 << 30))]
        killed = subprocess.run(argv, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        went_on += "goes on after row" in killed.stdout
    said: list[str] = []
    cut = prepare(Data([file], seq_len=16, max_rejects=1.0), tokenizer, tmp_path / "cut", "train", said.append)
    assert "goes on after row" in said[0] and went_on
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [whole.folder.name]
    assert {one.name: one.read_bytes() for one in cut.folder.iterdir()} == {
        one.name: one.read_bytes() for one in whole.folder.iterdir()
    }
