"""Sweeps without a Slurm, or with one that only writes down what it is told: combinations, folders, one sbatch, results."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

import launch
from durable import append_line
from settings import dump_yaml
from slurm import submission
from slurm.rundir import RunDir, Sweep
from slurm.submission import Submission
from slurm.sweeps import grid
from tests.slurm.test_launch import RECIPE, TINY, Said, refused
from tests.trainer.data.samples import texts, write_rows, write_tokenizer
from trainer.prepare import distinct
from trainer.prepare import main as prepare


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its files, in a folder of its own, on a machine without Slurm."""
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    write_rows(tmp_path / "train.jsonl", texts(200))
    (tmp_path / "sft.yaml").write_text(dump_yaml({**RECIPE, "model": {"config": TINY, "tokenizer": "tokenizer"}}))
    return tmp_path


CONFIG = """ClusterName = recorded
SLURM_VERSION = 24.05.1
MaxArraySize = 1001
AccountingStorageType = accounting_storage/none
"""


@pytest.fixture
def site(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that queues nothing: it writes down each call, and its queue is the file `queue`. Returns the calls."""
    programs, calls = here / "bin", here / "calls"
    programs.mkdir()
    calls.touch()
    (here / "queue").touch()
    (here / "slurm.conf").touch()
    (here / "config").write_text(CONFIG)
    answers = {
        "scontrol": f'cat "{here}/config"',
        "sinfo": 'echo "gpu*|up|1-00:00:00|1:00:00|1-infinite|0/9/0/9|gpu:4|64|250000|(null)"',
        "squeue": f'cat "{here}/queue"',
        "scancel": "",
        "srun": "",
        "sbatch": f'[ "$1" = --test-only ] && cat > /dev/null && exit 0; cp "$1" "{here}/sent"; echo Submitted batch job 812',
    }
    for name, answer in answers.items():
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{calls}"\n{answer}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(here / "slurm.conf"))
    monkeypatch.setattr(submission, "prepare_data", prepare_data)
    return calls


def prepare_data(*runs: Submission) -> None:
    """As the real one, but in this process: another would import transformers again, for 5 s."""
    for path in distinct([one.run.path / "config.yaml" for one in runs]):
        prepare(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("[a,b],[c]", ["[a,b]", "[c]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("\"a,b\",'c,d'", ['"a,b"', "'c,d'"]),
        ("[it's]", ["[it's]"]),
        ("a,", ["a", ""]),
        ("", [""]),
    ],
)
def test_values_are_parted_outside_of_quotes_and_brackets(text: str, found: list[str]) -> None:
    assert grid.pieces(text) == found


@pytest.mark.parametrize(
    ("tasks", "parallel", "text"),
    [
        ([*range(9)], 3, "0-8%3"),
        ([*range(9)], 9, "0-8"),
        ([7, 0, 1, 2, 9], None, "0-2,7,9"),
        ([4], 1, "4"),
        ([], None, ""),
    ],
)
def test_the_array(tasks: list[int], parallel: int | None, text: str) -> None:
    assert grid.array(tasks, parallel) == text


def test_names_tell_the_runs_apart() -> None:
    axes, others = grid.axes(["optim.lr=1e-5,2e-5", "a.x=[1],[2]", "b.x=p/q,r", "train.steps=3", "job.nodelist=n1,n2"])
    assert others == ["train.steps=3", "job.nodelist=n1,n2"]
    found = grid.combinations(axes)
    assert len(found) == 8 and found[1].words == ["optim.lr=1e-5", "a.x=[1]", "b.x=r"]
    assert found[0].name == "lr_1e-5-a.x_1-b.x_p-q" and found[0].values == {"optim.lr": 1e-5, "a.x": [1], "b.x": "p/q"}
    assert grid.run_names("s", found[:1], 3, ["s-lr_1e-5-a.x_1-b.x_p-q"]) == ["s-003"]
    assert grid.run_names("s" * 60, found[:2], 0, []) == [f"{'s' * 60}-000", f"{'s' * 60}-001"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["optim.lr=1e-5"], "a sweep takes a key with several values: optim.lr=1e-5,2e-5,5e-5"),
        (["optim.lr=1e-5,0.00001"], "optim.lr=1e-5,0.00001: 0.00001 stands twice"),
        (["optim.lr=1e-5,"], "optim.lr=1e-5,: a value is empty; one that has a comma in it: optim.lr='\"A,B\"'"),
        (["seed=1,2", "train.seed=3,4"], "train.seed stands twice: give all of its values at once: train.seed=A,B,C"),
        (["optim.lrr=1,2"], "sft.yaml: unknown key optim.lrr: did you mean optim.lr?"),
        (["optim.lr=1e-5,x"], "sft.yaml: optim.lr=x: expected float | null, got str"),
        (["seed=1,2", "--parallel", "0"], "--parallel 0: at least one run at a time"),
        (["seed=1,2", "--continue-by", "array"], "--continue-by array: a sweep is an array already: take chain, requeue or none"),
        (["train.global_batch_size=48,50", "--gpus", "4"], "train.global_batch_size=50 does not divide by 4 ranks"),
        (["seed=1,2", "--", "true"], "sweep takes no command, not: true"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_written(here: Path, capsys: Said, words: list[str], line: str) -> None:
    assert refused(capsys, "sweep", "--cluster", "generic", "--dry-run", "sft.yaml", *words).startswith(line)
    assert not Path("runs").exists()


def test_a_dry_run(here: Path, capsys: Said) -> None:
    words = [
        "sweep",
        "--cluster",
        "generic",
        "--dry-run",
        "sft.yaml",
        "optim.lr=1e-5,2e-5",
        "seed=1,2,3",
        "--parallel",
        "2",
    ]
    assert launch.main([*words, "-t", "01:00:00", "--mail-user", "me"]) == 0
    said = capsys.readouterr()
    flags = re.findall(r"^#SBATCH --(.+)$", said.out, re.MULTILINE)
    folder = here / "runs" / "sft-sweep"
    assert {"job-name=sft-sweep", "array=0-5%2", f"output={folder}/tasks/%a/logs/job-%A_%a.log", "requeue"} <= {*flags}
    assert f'slurm.supervisor "$(readlink {folder}/tasks/"$SLURM_ARRAY_TASK_ID")"' in said.out
    assert "sft-sweep: 6 runs of 1 node x 1 GPU = 1 rank on generic" in said.err and "2 at a time" in said.err
    assert (
        "each goes on under the same job id (requeue)" in said.err and "each: cost: at most 1.0 GPU-hours" in said.err
    )
    assert "     5  sft-sweep-lr_2e-5-seed_3  optim.lr=2e-05 train.seed=3" in said.err
    assert "mail-type=FAIL" in flags and not Path("runs").exists()
    assert launch.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["job"]["continue_by"] == "requeue" and len(told["runs"]) == 6 and told["left"] == {}
    assert launch.main([*words[:-2], "--json"]) == 0  # no limit that successors could break
    assert json.loads(capsys.readouterr().out)["job"]["continue_by"] == "chain"


def test_two_hundred_runs_are_one_array_with_one_sbatch(here: Path, site: Path, capsys: Said) -> None:
    rates, seeds = ",".join(f"{n}e-6" for n in range(1, 21)), ",".join(map(str, range(10)))
    words = ["sweep", "sft.yaml", f"optim.lr={rates}", f"seed={seeds}", "--gpus", "4", "--parallel", "8"]
    assert launch.main([*words, "--dry-run"]) == 0
    capsys.readouterr()
    site.write_text("")
    begin = time.monotonic()
    assert launch.main(words) == 0
    print(f"{time.monotonic() - begin:.1f} s")
    sweep = Sweep(here / "runs" / "sft-sweep")
    calls = [line.split()[:2] for line in site.read_text().splitlines()]
    assert [call for call in calls if call[0] == "sbatch" and call[1] != "--test-only"].__len__() == 1
    assert "#SBATCH --array=0-199%8\n" in (here / "sent").read_text()
    assert len(calls) < 12, calls  # no call grows with the runs
    assert len(list((here / "runs" / ".prepared").glob("*/"))) == 1 and len(sweep.runs) == 200
    third = sweep.runs[3]
    assert (third.task, third.jobs()[0]["job"]) == (3, "812_3") and "code" in os.listdir(sweep.path)
    assert (third.path / "code").is_symlink() and sweep.link(3).resolve() == third.path
    assert sum(len(files) for _, _, files in os.walk(third.path)) < 8


def over(run: RunDir, loss: float | None, held_out: float | None) -> None:
    for step in range(1, 21):
        about = {"event": "step", "epoch": 1, "step": step, "seconds": 1.0, "time": float(step)}
        append_line(run.events, {**about, "loss": None if loss is None else loss + step})
    if held_out is not None:
        append_line(run.events, {"event": "evaluation", "epoch": 1, "step": 20, "time": 21.0, "loss": held_out})
    run.write_done("trained")


def queue(here: Path, *lines: tuple[str, str]) -> None:
    logs = here / "runs" / "sft-sweep" / "tasks" / "%a" / "logs" / "job-%A_%a.log"
    (here / "queue").write_text(
        "".join(f"{job}|{state}|Resources|1:00:00|(null)|N/A|1:00:00|{logs}\n" for job, state in lines)
    )


def test_said_again_it_does_what_is_not_done(here: Path, site: Path, capsys: Said) -> None:
    words = ["sweep", "sft.yaml", "optim.lr=1e-5,2e-5,5e-5", "--gpus", "4"]
    assert launch.main(words) == 0
    capsys.readouterr()
    sweep = Sweep(here / "runs" / "sft-sweep")
    first, second, third = sweep.runs
    queue(here, ("812_0", "RUNNING"), ("812_1", "PENDING"), ("812_2", "PENDING"))
    assert launch.main(words) == 0
    said = capsys.readouterr().out
    assert "left, since it waits or runs: " in said and "nothing is to be done: launch.py status sft-sweep" in said

    # One has ended well, one badly; a new value is a new run.
    over(first, 1.0, 3.0)
    third.claim("812_2", 0, after=0)
    third.cancel("crash", "three times")
    queue(here, ("812_1", "PENDING"))
    assert launch.main([*words[:2], "optim.lr=5e-5,1e-5,2e-5,9e-5", "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "left, since it is done: sft-sweep-lr_1e-5\nleft, since it waits or runs: sft-sweep-lr_2e-5\n" in said
    assert "sft-sweep: 2 runs of 1 node x 2 GPUs = 2 ranks" in said
    assert "#SBATCH --array=2-3\n" in (here / "sent").read_text()
    assert third.cancelled is None and "gpus_per_node: 2" in (third.path / "job.yaml").read_text()
    assert [entry["task"] for entry in sweep.entries()] == [0, 1, 2, 3]

    # Another recipe is another sweep; what is no sweep is none.
    line = refused(capsys, *words, "train.steps=11")
    assert line == (
        "sft-sweep-lr_1e-5 is there, and train.steps was 10 and would be 11: take another --name, or the recipe as it was"
    )
    (here / "runs" / "other").mkdir()
    assert "is there and is no sweep: take another --name" in refused(capsys, *words, "--name", "other")


def test_a_refused_sweep_leaves_nothing(here: Path, site: Path, capsys: Said) -> None:
    sbatch = here / "bin" / "sbatch"
    words = ["sweep", "sft.yaml", "seed=1,2,3", "--gpus", "4"]
    said = "sbatch: error: AssocMaxSubmitJobLimit\\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    sbatch.write_text(f"#!/bin/sh\nprintf '{said}\\n' >&2; exit 1\n")
    line = refused(capsys, *words)
    assert line.startswith(
        "a sweep of 3 runs takes as many places in the queue: --continue-by chain: Slurm says: Assoc"
    )
    assert not Path("runs").exists()
    sbatch.write_text(f"#!/bin/sh\n[ \"$1\" = --test-only ] && exit 0; printf '{said}\\n' >&2; exit 1\n")
    assert "AssocMaxSubmitJobLimit" in refused(capsys, *words)
    assert not Path("runs/sft-sweep").exists()
    (here / "config").write_text(CONFIG.replace("1001", "3"))
    assert launch.main([*words, "--dry-run"]) == 0
    capsys.readouterr()
    line = refused(capsys, *words[:2], "seed=1,2,3,4", "--gpus", "4")
    assert line.startswith("a sweep of 4 runs: arrays of this Slurm end at 3 (MaxArraySize): give fewer values, or")


def test_the_results(here: Path, site: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.main(["sweep", "sft.yaml", "optim.lr=1e-5,2e-5,5e-5,9e-5", "--gpus", "4"]) == 0
    sweep = Sweep(here / "runs" / "sft-sweep")
    first, second, third, fourth = sweep.runs
    over(first, 1.0, 3.0)
    over(second, 2.0, 2.5)
    over(third, 0.5, None)
    queue(here, ("812_3", "PENDING"))
    capsys.readouterr()
    assert launch.main(["status", "sft-sweep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sft-sweep: 4 runs: 3 done, 1 waiting"
    assert lines[1].split() == ["optim.lr", "state", "step", "loss", "held-out", "run"]
    assert lines[2].split() == ["*", "2e-05", "done", "20", "17.5000", "2.5000", second.name]
    assert [line.split()[-1] for line in lines[3:6]] == [first.name, third.name, fourth.name]
    assert lines[6] == "* the best of those that are done, by its held-out loss"
    assert launch.main(["status", "812", "--json"]) == 0  # by its array's id
    told = json.loads(capsys.readouterr().out)
    assert (told["best"], told["by"], told["runs"][0]["values"]) == (second.name, "held_out", {"optim.lr": 2e-5})

    # Each is a run as any other, and the sweep is one line among them.
    assert launch.main(["status"]) == 0
    told = capsys.readouterr().out
    assert re.fullmatch(
        "sft-sweep: 4 runs: (3 done, 1 waiting|1 waiting, 3 done): see launch.py status sft-sweep\n", told
    )
    theirs = here / "runs" / "another"  # of a colleague, whose word on job ids is none
    theirs.mkdir()
    (theirs / "jobs.jsonl").write_text("{}\n")
    (theirs / "sweep.json").write_text('{"sent": [], "runs": [{"run": "../sft-sweep/../x", "values": {}}]}')
    monkeypatch.setattr(RunDir, "own", property(lambda run: run.path.name != "another"))
    assert Sweep(theirs).runs == [] and launch.main(["status", "812"]) == 0
    capsys.readouterr()
    assert launch.main(["status", "812_3"]) == 0
    assert capsys.readouterr().out.startswith(f"{fourth.name}: waiting (job 812_3 waits: it is next")
    assert "is a sweep: name one of its runs, as" in refused(capsys, "logs", "sft-sweep")
    assert launch.main(["stop", "sft-sweep"]) == 0
    assert f"{fourth.name} was not running: its place in the queue is given up" in capsys.readouterr().out
    assert site.read_text().splitlines()[-1] == "scancel 812_3"
    assert fourth.cancelled is not None and not second.cancelled
