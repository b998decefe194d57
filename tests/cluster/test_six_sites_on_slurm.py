"""A pocket dressed as six kinds of site, side by side: on each a run starts, is hurt, and comes to its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from envs.drill.faults import end_soon
from envs.drill.ranks import ranks
from envs.pocket import Pocket, up
from envs.pocket import layout as pocket_layout
from settings import dump_yaml
from slurm.rundir import RunDir
from tests.cluster.conftest import ROOT, causes, job_log, job_of, over
from tests.cluster.test_commands_on_slurm import WAITS
from tests.cluster.training import reaches
from tests.waiting import wait_until
from tests.workers import own

COMMAND = f"""{WAITS}
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
if attempt == 1: wait()
"""
RULES = """
function slurm_job_submit(job, partitions, user)
    {rule}
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end
"""
NO_GPU_FLAG = """
    if job.tres_per_node or job.tres_per_task or job.tres_per_job then
        slurm.log_user("GPU options are not accepted here")
        return slurm.ERROR
    end
"""
TYPED = """
    if not string.match(tostring(job.tres_per_node), "gpu:a100:%d") then
        slurm.log_user("name the type of your GPUs: --gres=gpu:a100:N")
        return slurm.ERROR
    end
"""


@dataclass(frozen=True)
class Site:
    cause: str
    """How the first attempt ends."""
    words: tuple[str, ...]
    profile: dict[str, Any] = field(default_factory=dict)
    gpus: int = 2
    rule: str = ""
    """Of its job_submit plugin."""
    conf: tuple[str, str] = ("", "")
    """What stands in another's slurm.conf, and in its own."""
    refused: str = ""
    """Said of a job by which nobody has told what the site wants."""


SITES = {
    "noflag": Site(
        "timeout", (), {"job": {"gpus_by": "none"}}, rule=NO_GPU_FLAG, refused="GPU options are not accepted"
    ),
    "typed": Site(
        "preemption",
        ("-p", "preempt"),
        {"job": {"gpus_by": "gres", "gpu_type": "a100"}},
        rule=TYPED,
        conf=("Gres=gpu:2", "Gres=gpu:a100:2"),
        refused="name the type of your GPUs",
    ),
    "norequeue": Site("preemption", ("-p", "preempt", "--continue-by", "requeue"), rule="job.requeue = 0"),
    "cancels": Site("preemption", ("-p", "cancel")),
    "short": Site("timeout", (), conf=("DefaultTime=30", "DefaultTime=10")),
    "single": Site("crash", ("--nodes", "2", "--launcher", "fork"), gpus=1),
}


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Pocket]]:
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("no Slurm on this machine")
    running: dict[str, Pocket] = {}
    try:
        for name, site in SITES.items():
            with monkeypatch.context() as dress:
                _dress(dress, site)
                prefix = os.environ.get("OUTLAST_TEST_POCKET", "pocket")[:8]
                running[name] = up(own(f"{prefix}-{name}"), nodes=2, gpus=site.gpus)
        yield running
    finally:
        for pocket in running.values():
            pocket.down()


def _dress(patch: pytest.MonkeyPatch, site: Site) -> None:
    conf, gres = pocket_layout.slurm_conf, pocket_layout.gres_conf

    def slurm_conf(plan: pocket_layout.Layout) -> str:
        (plan.folder / "job_submit.lua").write_text(RULES.format(rule=site.rule))
        text = conf(plan).replace(*site.conf) if site.conf[0] else conf(plan)
        assert site.conf[1] in text
        return f"{text}JobSubmitPlugins=lua\n"

    def gres_conf(plan: pocket_layout.Layout) -> str:
        return gres(plan).replace("Name=gpu", "Name=gpu Type=a100") if "a100" in site.conf[1] else gres(plan)

    patch.setattr(pocket_layout, "slurm_conf", slurm_conf)
    patch.setattr(pocket_layout, "gres_conf", gres_conf)


def test_a_run_comes_to_its_end_at_each(sites: dict[str, Pocket], recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    runs = {name: _start(name, sites[name], recipe, tmp_path) for name in SITES}
    for name, run in runs.items():
        site, pocket = SITES[name], sites[name]
        if name == "single":
            reaches(run, 1, 16)
            os.kill(ranks(run)[-1], signal.SIGKILL)
            continue
        wait_until(lambda run=run: next(run.path.glob("pid-1-0"), None), f"the rank of {name}")  # type: ignore[misc]
        shown = pocket.ask("scontrol", "show", "job", job_of(run))
        if name == "short":
            assert "TimeLimit=00:10:00" in shown
        if site.cause == "timeout":
            end_soon(pocket, job_of(run), 9)
        else:
            urgent = ["-p", "urgent", "-N2", "--exclusive", *(["--gres=gpu:a100:1"] if name == "typed" else [])]
            pocket.ask("sbatch", *urgent, "--output=/dev/null", "--wrap=sleep 1")
    for name, run in runs.items():
        over(run, 240)
        assert causes(run) == [SITES[name].cause, "done"], f"{name}\n{job_log(run)}"
        assert len({end["job_id"] for end in run.attempts()}) == (1 if name == "single" else 2), name
    assert "Requeue=0" in sites["norequeue"].ask("scontrol", "show", "job", job_of(runs["norequeue"]))


def _start(name: str, pocket: Pocket, recipe: Path, folder: Path) -> RunDir:
    """As its user does; where the site wants something of its own first without it, which is refused in its words."""
    site, runs = SITES[name], folder / name
    job = {"poll_seconds": 0.5, "lead_seconds": 5, **site.profile.get("job", {})}
    profile = folder / f"{name}.yaml"
    profile.write_text(dump_yaml({"gpus_per_node": site.gpus, "job": job}))
    what = [str(recipe), "train.steps=40"] if name == "single" else ["--", sys.executable, "-S", "command.py"]
    words = ["--runs-dir", str(runs), "--name", "x", *site.words]
    if site.refused:
        code, said = _launch(pocket, folder, *words, "--cluster", "generic", "--gpus", "2", *what)
        assert code == 78 and site.refused in said and not (runs / "x").exists(), said
    code, said = _launch(pocket, folder, *words, "--cluster", str(profile), *what)
    assert code == 0, said
    return RunDir(runs / "x")


def _launch(pocket: Pocket, folder: Path, *words: str) -> tuple[int, str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **pocket.env()}
    argv = [sys.executable, str(ROOT / "launch.py"), *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=folder, timeout=120)
    return done.returncode, done.stdout + done.stderr
