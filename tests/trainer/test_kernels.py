"""Norms, rotations and gated layers by liger-kernel. What they compute is seen at night, by Triton's interpreter on the
CPU, without which they need a GPU; who cannot have them is told by day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from msgspec.structs import replace

from settings import ConfigError, parse_yaml
from slurm.doctor import software
from tests.trainer.ranks import ROOT, Run
from tests.trainer.test_engines import DDP, FSDP, zero
from tests.trainer.test_lean import settings
from tests.trainer.test_loss import SMALL
from trainer import recipe
from trainer.identity import exact_part, layout_part
from trainer.layout import BatchLayout
from trainer.model import kernels
from trainer.shape import Model

NewRun = Callable[..., Run]
LLAMA = Model(config={"model_type": "llama", **SMALL})


def with_kernels(new_run: NewRun, name: str = "run", **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = parse_yaml((new_run(name, **changes).path / "config.yaml").read_text(), name)
    return {**tree, "train": {**tree["train"], "kernels": "liger"}}


@pytest.mark.parametrize(
    ("train", "model", "said"),
    [
        ({"compile": True}, {}, "train.kernels=liger fuses what train.compile would: take one of them"),
        ({"gradient_checkpointing": "selective"}, {}, "rotates queries and keys where they lie"),
        ({}, {"model_type": "gpt2"}, "train.kernels=liger was not tried with gpt2, but with llama, mistral, "),
        ({}, {"hidden_act": "relu"}, "train.kernels=liger computes silu, this model's hidden_act is relu: leave it"),
    ],
)
def test_what_cannot_be_is_refused_before_the_queue(
    new_run: NewRun, tmp_path: Path, train: dict[str, Any], model: dict[str, Any], said: str
) -> None:
    tree = with_kernels(new_run, train=train, model={"config": model})
    with pytest.raises(ConfigError, match=said):
        recipe.checked(tree, tmp_path / "other", 1, "recipe")


def test_without_a_gpu_a_rank_ends_in_one_line(new_run: NewRun) -> None:
    run = new_run("run", train={"kernels": "liger"})
    assert run.go(1) == [78]
    assert "train.kernels=liger needs a GPU, and this rank computes on cpu: leave it out" in run.log()


def test_a_package_that_is_missing_or_cannot_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ConfigError, match="needs liger-kernel in the ranks' Python: pip install liger-kernel"):
        kernels.try_out(torch.device("cpu"))
    package, theirs = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    theirs.LigerRMSNorm = Mock(side_effect=RuntimeError("Failed to find\nC compiler"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", theirs)
    with pytest.raises(
        ConfigError, match="the installed liger-kernel cannot compute on cpu: Failed to find C compiler$"
    ):
        kernels.try_out(torch.device("cpu"))


def test_they_may_change_between_attempts_and_that_is_said() -> None:
    plain = settings("fp32")
    fused, layout = replace(plain, train=replace(plain.train, kernels="liger")), BatchLayout(2, 1, 1)
    assert exact_part(plain) == exact_part(fused)
    assert [layout_part(one, layout)["engine"] for one in (plain, fused)] == ["ddp", "ddp liger"]


# --- what they compute ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of liger-kernel, and of the triton that goes with the project's torch for CUDA."""
    folder = str(tmp_path_factory.mktemp("packages"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    wanted = ["-c", str(ROOT / "constraints.txt"), "--target", folder, "liger-kernel", "triton"]
    subprocess.run([*pip, *wanted], check=True)
    return folder


@pytest.mark.nightly
def test_losses_and_gradients_are_those_of_transformers(packages: str) -> None:
    argv = [sys.executable, "-m", "tests.trainer.gradients_by_kernels"]
    variables = {**os.environ, "KERNELS": packages, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables).stdout
    found: dict[str, tuple[float, float]] = json.loads(told.splitlines()[-1])
    assert found.keys() > kernels.FAMILIES.keys()
    for name, (loss, gradient) in found.items():
        half = name.endswith("half")
        assert loss < (1e-4 if half else 1e-6) and gradient < (1e-2 if half else 1e-5), name


@pytest.mark.nightly
@pytest.mark.parametrize(("engine", "world"), [(DDP, 2), (FSDP, 2), (zero(2), 2), (zero(3), 2)], ids=str)
def test_cut_and_resumed_to_the_bit_under_every_engine(
    new_run: NewRun, packages: str, engine: dict[str, Any], world: int
) -> None:
    shape: dict[str, Any] = {
        "model": {"config": {"mlp_bias": True, "num_hidden_layers": 1}},
        "train": {"steps": 12, "global_batch_size": 2},
        "evaluation": {"every": 0},
        "engine": engine,
    }
    plain = new_run("plain", **shape)
    assert plain.go(world) == [0] * world, plain.log()
    shape["train"]["kernels"] = "liger"
    whole, cut = new_run("whole", **shape), new_run("cut", **shape)

    def ranks(run: Run) -> list[str]:
        return ["tests.trainer.with_interpreted_kernels", str(run.path / "config.yaml")]

    assert whole.go(world, ranks(whole), KERNELS=packages) == [0] * world, whole.log()
    cut.stop_after(world, 2, ranks(cut), KERNELS=packages)
    assert cut.go(world, ranks(cut), KERNELS=packages) == [0] * world, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"] != plain.done()["sha256"]
    assert [loss for _, loss in whole.history("loss")] == pytest.approx([x for _, x in plain.history("loss")], rel=1e-5)


def test_doctor_asks_for_the_package() -> None:
    case: Any = Mock(settings={"train": {"kernels": "liger"}})
    assert any(text.startswith("liger-kernel>=") for text in software.requirements(case))
