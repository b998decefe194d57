"""`python -m trainer.checkpoint`, and the format as its document has it."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from settings import dump_yaml, read_yaml
from tests.trainer.ranks import ROOT, Run, write_run
from trainer.checkpoint.__main__ import main
from trainer.checkpoint.format import BLOCK, read_manifest
from trainer.checkpoint.verify import _held


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, zygote: object) -> Run:
    """Three checkpoints of two ranks, some of their parameters in bf16."""
    shape = {
        "train": {"steps": 6, "precision": "bf16"},
        "checkpoint": {"every": 2, "keep": 3},
        "evaluation": {"every": 4, "batches": 1},
    }
    run = write_run(tmp_path_factory.mktemp("saved") / "run", zygote, **shape, model={"config": {"hidden_size": 128}})  # type: ignore
    assert run.go(2) == [0, 0], run.log()
    return run


@pytest.fixture
def run_dir(saved: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.path, tmp_path / "run"))


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("step-*"))


def test_list_and_show(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(run_dir)]) == 0
    told = capsys.readouterr().out
    rows = told.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["6", "4", "2"] and all("ddp on 2 ranks; last 3" in row for row in rows)
    losses = [read_manifest(path).evaluation_loss for path in sorted((run_dir / "checkpoints").iterdir(), reverse=True)]
    assert losses[2] is None and all(f" {loss:.4f}  ddp" in row for loss, row in zip(losses[:2], rows, strict=False))
    assert main(["show", str(run_dir), "--step", "4"]) == 0
    told = capsys.readouterr().out
    assert (
        told.startswith("step-00000004-e0001: 4 steps")
        and "model.embed_tokens.weight [512, 128]  bf16: weights" in told
    )
    assert main(["show", str(run_dir), "--step", "5"]) == 78
    assert "steps that are there: 6, 4, 2" in capsys.readouterr().err
    assert main(["list", str(run_dir.parent)]) == 78


def test_every_flipped_bit_is_found_and_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run_dir)]) == 0 and "is whole" in capsys.readouterr().out
    chance = random.Random(1)
    for path in (*newest(run_dir).glob("*.safetensors"), newest(run_dir) / "MANIFEST.json"):
        good = path.read_bytes()
        for _ in range(25):
            bit = chance.randrange(8 * len(good))
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            assert main(["verify", str(run_dir)]) == 1, f"{path.name}: bit {bit}"
            told = capsys.readouterr().out
            if path.suffix == ".safetensors":
                assert f"{path.name}: block {bit // 8 // BLOCK} " in told and "has a wrong bit: " in told
        path.write_bytes(good)
    assert main(["verify", str(newest(run_dir))]) == 0


def test_what_is_named_is_what_lies_there(run_dir: Path) -> None:
    manifest = read_manifest(newest(run_dir))
    for file in manifest.files:
        for piece in file.pieces:
            narrow = manifest.parameters[piece.tensor].bf16
            for kind, at in piece.offsets.items():
                last = at + (piece.stop - piece.start) * (2 if kind in narrow else 4) - 1
                for byte in (at, last):
                    assert list(_held(file, manifest, byte, byte + 1)) == [f"{kind} of {piece.tensor}"]
        for name, (_, at, _) in file.arrays.items():
            assert list(_held(file, manifest, at, at + 1)) == [name]
        assert list(_held(file, manifest, 0, 8)) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, not"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.with_name("rank-0001.safetensors").read_bytes()), "bytes, not"),
        (
            lambda path: path.write_bytes(bytes(path.stat().st_size)),
            "block 0 (from byte 0) has a wrong bit: weights of model.embed_tokens.weight, ",
        ),
    ],
    ids=["cut", "deleted", "swapped", "zeros"],
)
def test_other_harm(run_dir: Path, harm: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    harm(newest(run_dir) / "rank-0000.safetensors")
    assert main(["verify", str(run_dir)]) == 1
    assert said in capsys.readouterr().out


def test_prune_never_counts_what_does_not_verify(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = newest(run_dir) / "rank-0001.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + b"\xff" * 8)
    assert main(["prune", str(run_dir), "--keep", "1"]) == 0
    assert [path.name[:13] for path in sorted((run_dir / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000006",
    ]
    assert "step-00000006-e0001 stays, though rank-0001" in capsys.readouterr().out
    assert main(["prune", str(run_dir), "--keep", "1"]) == 0
    with pytest.raises(SystemExit):
        main(["prune", str(run_dir), "--keep", "0"])


@pytest.mark.parametrize(
    ("words", "stay"),
    [
        ([], {6: "last 3", 4: "last 3", 2: "last 3"}),  # what the run's own config says
        (["--keep", "1", "--keep-every", "3"], {6: "last 1, first from step 6 on", 4: "first from step 3 on"}),
        (["--keep", "1", "--keep-best", "3"], {6: "last 1, best 3: loss", 4: "best 3: loss"}),
    ],
)
def test_prune_says_why_what_stays_does(
    run_dir: Path, words: list[str], stay: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(run_dir), *words]) == 0
    told = capsys.readouterr().out.splitlines()
    for step, line in zip((6, 4, 2), told, strict=True):
        why = f"stays: {stay[step]}" if step in stay else "is deleted"
        assert line.startswith(f"step-{step:08d}-e0001 {why}")
    left = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}-e0001" for step in sorted(stay)]


def test_list_says_what_a_run_without_room_lets_go_of(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_dir / "config.yaml"
    config.write_text(dump_yaml({**read_yaml(config), "checkpoint": {"keep": 2, "keep_every": 5}}))
    assert main(["list", str(run_dir)]) == 0
    assert [row.split("ranks; ")[1] for row in capsys.readouterr().out.splitlines()[1:]] == [
        "last 2, first from step 5 on",
        "last 2",
        "goes when the next one is saved",
    ]


def test_the_documents_reader_reads(saved: Run) -> None:
    """With numpy alone, as a stranger would."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "checkpoint-format.md").read_text(), re.DOTALL)
    name = "model.layers.1.mlp.down_proj.weight"
    done = subprocess.run([sys.executable, "-c", code, newest(saved.path), name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = [load_file(path) for path in newest(saved.path).glob("*.safetensors")]
    values = [value for part in parts for key, value in part.items() if key.startswith(f"weights/{name}[")]
    assert values[0].dtype == torch.bfloat16
    assert float(done.stdout) == pytest.approx(
        float(np.sum([value.float().sum().item() for value in values])), rel=1e-4
    )
