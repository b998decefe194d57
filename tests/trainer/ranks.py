"""Real ranks with gloo for the tests: start them, signal them, wait for their exit codes, compare what they left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from settings import dump_yaml, merge, read_yaml
from slurm.node.rendezvous import candidates, reserve_port
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent


class Zygote:
    """The process that forks ranks. `address`: where it serves tests.quick_python."""

    def __init__(self) -> None:
        self.address = f"\0outlast-zygote-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            number = listener.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                pass_fds=[number],
            )
        self.codes: dict[int, int] = {}
        self.held: dict[Path, socket.socket] = {}

    def fork(self, argv: list[str], variables: dict[str, str], log: Path) -> int:
        self._ask({"argv": argv, "variables": variables, "log": str(log)})
        while True:
            answer = self._answer()
            if "code" not in answer:
                self.codes.pop(answer["pid"], None)  # Linux gives numbers of processes again
                return answer["pid"]

    def kill(self, pids: list[int]) -> None:
        """All at once; they may have left by themselves."""
        self._ask({"kill": [pid for pid in pids if pid not in self.codes]})

    def _ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def wait(self, pid: int) -> int:
        while pid not in self.codes:
            self._answer()
        return self.codes[pid]

    def _answer(self) -> dict[str, int]:
        assert self.process.stdout is not None
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        if "code" in answer:
            self.codes[answer["pid"]] = answer["code"]
        return answer

    def port(self, run: Path) -> int:
        """For rank 0, held until the run's next attempt: no other test takes it before rank 0 listens."""
        if run in self.held:
            self.held.pop(run).close()
        self.held[run] = reserve_port(candidates(str(run)))
        return int(self.held[run].getsockname()[1])

    def close(self) -> None:
        self.process.communicate()
        for held in self.held.values():
            held.close()


@dataclass
class Run:
    """One run folder and the attempts on it."""

    zygote: Zygote
    path: Path
    pids: list[int] = field(default_factory=list)
    attempt: int = 0

    def copy(self, name: str) -> Run:
        """Another run that has come as far."""
        return replace(self, path=Path(shutil.copytree(self.path, self.path.with_name(name))), pids=[])

    def start(self, world: int, argv: list[str] | None = None, **variables: str) -> None:
        """The ranks of a new attempt, claimed as a supervisor does; `argv`: another module than the trainer."""
        self.attempt += 1
        attempt = self.attempt
        (self.path / "claims").mkdir(exist_ok=True)
        claim = {"epoch": attempt, "job_id": None, "restart_count": 0, "time": time.time(), "resume_from": None}
        (self.path / "claims" / f"{attempt:04d}.json").write_text(json.dumps(claim))
        common = {
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "GROUP_RANK": "0",
            "OUTLAST_ATTEMPT": str(attempt),
        }
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.zygote.port(self.path)), **variables}
        self.pids = []
        for rank in range(world):
            log = self.path / f"attempt-{attempt}-rank-{rank}.log"
            module = argv or ["trainer", str(self.path / "config.yaml")]
            self.pids.append(self.zygote.fork(module, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, log))

    def start_with_fault(self, world: int, point: str, rank: int | str, fault: str, **variables: str) -> None:
        """With a fault of `tests.trainer.with_a_fault`."""
        for file in ("reached", "go"):
            (self.path / file).unlink(missing_ok=True)
        module = ["tests.trainer.with_a_fault", point, str(rank), fault, str(self.path / "config.yaml")]
        self.start(world, module, **variables)

    def reaches_fault(self) -> None:
        wait_until((self.path / "reached").exists, f"the fault\n{self.log()}")

    def go_on(self) -> None:
        (self.path / "go").touch()

    def wait(self) -> list[int]:
        return [self.zygote.wait(pid) for pid in self.pids]

    def go(self, world: int, argv: list[str] | None = None, **variables: str) -> list[int]:
        self.start(world, argv, **variables)
        return self.wait()

    def signal(self, signum: int, rank: int | None = None) -> None:
        for pid in self.pids if rank is None else [self.pids[rank]]:
            os.kill(pid, signum)

    def kill(self) -> list[int]:
        self.zygote.kill(self.pids)
        return self.wait()

    def reaches(self, step: int) -> None:
        """Wait until this attempt has done a step."""
        wait_until(lambda: any(e["step"] >= step for e in self.events("step")), f"step {step}\n{self.log()}")

    def stop_after(self, world: int, steps: int, argv: list[str] | None = None, **variables: str) -> str:
        """An attempt that is stopped after so many more steps. Returns the name of the checkpoint that it left."""
        self.start(world, argv, **variables)
        self.reaches(max((e["step"] for e in self.events("step")), default=0) + steps)
        self.signal(signal.SIGUSR1, rank=world - 1)
        assert self.wait() == [75] * world, self.log()
        return self.checkpoints()[-1]

    def change_engine(self, engine: dict[str, Any]) -> None:
        path = self.path / "config.yaml"
        path.write_text(dump_yaml({**read_yaml(path), "engine": engine}))

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.path / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [e for e in map(json.loads, (line for line in lines if line.endswith("\n"))) if e["event"] == kind]

    def history(self, *keys: str) -> list[tuple[Any, ...]]:
        """The steps that count, in order, with these values."""
        resumes = [(e["epoch"], e["step"]) for e in self.events("resume")]
        kept = [e for e in self.events("step") if all(e["step"] <= s for epoch, s in resumes if epoch > e["epoch"])]
        return [tuple(e[key] for key in ("step", *keys)) for e in sorted(kept, key=lambda e: e["step"])]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.path / "checkpoints").glob("step-*"))

    def done(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "DONE").read_text()))

    def log(self, rank: int = 0) -> str:
        newest = max(self.path.glob(f"attempt-*-rank-{rank}.log"), key=lambda p: p.stat().st_mtime, default=None)
        return newest.read_text() if newest else ""


def assert_cut_is_as_whole(whole: Run, cut: Run, world: int) -> None:
    """Both to their end, one of them stopped on the way: no bit differs."""
    assert whole.go(world) == [0] * world, whole.log()
    cut.stop_after(world, 3)
    assert cut.go(world) == [0] * world, cut.log()
    assert cut.history("loss", "grad_norm", "hash") == whole.history("loss", "grad_norm", "hash")
    assert cut.done()["sha256"] == whole.done()["sha256"]


def write_run(folder: Path, zygote: Zygote, **changes: Any) -> Run:
    """A tiny Llama on tiny documents: 60 steps of 12 sequences, saved every 20, evaluated every 16."""
    folder.mkdir(parents=True)
    recipe = {
        "name": folder.name,
        "model": {
            "tokenizer": write_tokenizer(folder / "tokenizer"),
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 512,
                "max_position_embeddings": 64,
                "attention_dropout": 0.1,  # draws from the generator: a resume must restore it
                "tie_word_embeddings": True,
            },
        },
        "data": {
            "train": [write_rows(folder / "train.jsonl", texts(120))],
            "evaluation": [write_rows(folder / "evaluation.jsonl", texts(30))],
            "seq_len": 16,
        },
        "train": {"steps": 60, "global_batch_size": 12, "precision": "fp32", "seed": 3},
        "optim": {"lr": 1e-2, "weight_decay": 0.1},
        "evaluation": {"every": 16, "batches": 2},
        "checkpoint": {"every": 20},
        "tensorboard": False,
        "report": False,
    }
    (folder / "config.yaml").write_text(dump_yaml(merge(recipe, changes)))
    return Run(zygote, folder)
