"""What jobs meet in a pocket: nodes with names, GPUs to count, preemption, requeue, dying nodes."""

import subprocess
from pathlib import Path

import pytest

from envs.pocket import Pocket, PocketError, network, process
from tests.pocket.rig import Job, needs_namespaces, needs_slurm, submit, wait_for

pytestmark = needs_slurm


def test_step_of_a_batch_job_spans_nodes(pocket: Pocket, scratch: Path) -> None:
    script = "srun --label bash -c 'read line; echo $line from $(hostname)' <<< hello"
    job = submit(pocket, scratch, script, "--nodes=2")
    job.wait_state("COMPLETED")
    assert sorted(job.text().splitlines()) == ["0: hello from node1", "1: hello from node2"]


def test_step_from_the_login(pocket: Pocket) -> None:
    assert sorted(pocket.ask("srun", "--nodes=2", "hostname").split()) == ["node1", "node2"]


@needs_namespaces
def test_names_resolve_on_nodes_and_only_there(pocket: Pocket) -> None:
    before = Path("/etc/hosts").read_text()
    answer = pocket.ask("srun", "--nodelist=node1", "getent", "ahostsv4", "node1", "node2", "login")
    addresses = {line.split()[0] for line in answer.splitlines()}
    layout = pocket.layout
    expected = [layout.address("node1"), layout.address("node2"), layout.controller_address]
    assert addresses == {str(address) for address in expected}
    assert "node2" not in before
    assert Path("/etc/hosts").read_text() == before


def test_gpus_are_counted(pocket: Pocket) -> None:
    visible = pocket.ask("srun", "--nodes=2", "--gpus-per-node=8", "printenv", "CUDA_VISIBLE_DEVICES")
    assert visible.split() == ["0,1,2,3,4,5,6,7"] * 2
    with pytest.raises(PocketError, match="Requested node configuration is not available"):
        pocket.ask("sbatch", "--gpus-per-node=9", "--wrap=true")


def test_sixteen_tasks_fit_a_node(pocket: Pocket) -> None:
    assert len(pocket.ask("srun", "--nodes=1", "--ntasks=16", "--cpus-per-task=4", "hostname").split()) == 16


def test_preemption_warns_then_requeues_or_cancels(pocket: Pocket, scratch: Path) -> None:
    script = """
    [ "${SLURM_RESTART_COUNT:-0}" = 1 ] && { echo back; exit; }
    srun bash -c 'trap "echo warned" TERM; echo ready; while :; do sleep 0.1; done'
    """
    requeued = submit(pocket, scratch, script, "--partition=preempt", "--exclusive")
    cancelled = submit(pocket, scratch, script, "--partition=cancel", "--exclusive")
    both = (requeued, cancelled)
    wait_for(lambda: all("ready" in job.text() for job in both))
    urgent = submit(pocket, scratch, "true", "--partition=urgent", "--nodes=2", "--exclusive")
    wait_for(lambda: all("warned" in job.text() for job in both))
    assert [job.facts()["JobState"] for job in both] == ["RUNNING"] * 2  # the grace lasts
    urgent.wait_state("COMPLETED")
    requeued.wait_text("back")
    assert requeued.facts()["Restarts"] == "1"
    assert (cancelled.facts()["JobState"], cancelled.facts()["Restarts"]) == ("PREEMPTED", "0")


def test_requeued_job_is_back_in_seconds(pocket: Pocket, scratch: Path) -> None:
    job = submit(pocket, scratch, 'echo start; [ -n "$SLURM_RESTART_COUNT" ] || sleep 100')
    job.wait_text("start")
    pocket.ask("scontrol", "requeue", job.id)
    wait_for(lambda: job.text().count("start") == 2)  # where nobody hurries it Slurm lets it wait for two minutes


@needs_namespaces
def test_lost_nodes_are_noticed_and_return(pocket: Pocket) -> None:
    pocket.kill_node("node1")
    pocket.cut_link("node2")
    wait_for(lambda: all(state.startswith("down") for state in pocket.node_states().values()), timeout_s=60)
    pocket.start_slurmd("node1")
    pocket.mend_link("node2")
    pocket.ask("scontrol", "reconfigure")  # by itself slurmctld asks a node that it calls down after 50 s (measured)
    wait_for(lambda: set(pocket.node_states().values()) == {"idle"}, timeout_s=60)


@needs_namespaces
def test_killed_node_takes_its_ranks_along(pocket: Pocket, scratch: Path) -> None:
    ranks = "srun bash -c 'echo $(hostname); exec sleep 4321'"
    job = submit(pocket, scratch, ranks, "--nodes=2", "--no-requeue")
    wait_for(lambda: job.text().count("node") == 2)
    pocket.kill_node("node2")
    assert _ranks(pocket, "node2") == 0
    assert _ranks(pocket, "node1") == 1
    pocket.start_slurmd("node2")


def test_controller_comes_back_and_knows_its_jobs(pocket: Pocket, scratch: Path) -> None:
    job = submit(pocket, scratch, "echo ready; exec sleep 100")
    job.wait_text("ready")
    pocket.stop_controller()
    assert not pocket.status().slurmctld
    pocket.start_controller()
    assert job.facts()["JobState"] == "RUNNING"


@needs_namespaces
def test_ordinary_user(pocket: Pocket, scratch: Path) -> None:
    command = ["sbatch", "--parsable", f"--output={scratch}/%j.out", "--nodes=2", "--wrap=srun id -un"]
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    id = subprocess.run(
        [*user, *command], env=pocket.env(), cwd=scratch, check=True, text=True, stdout=subprocess.PIPE
    ).stdout.strip()
    job = Job(pocket, id, scratch / f"{id}.out")
    job.wait_state("COMPLETED")
    assert job.text().split() == ["nobody"] * 2
    assert job.output.owner() == "nobody"


def _ranks(pocket: Pocket, node: str) -> int:
    alive = network.processes(pocket.layout.namespace(node))
    return sum(process.command_line(pid) == ["sleep", "4321"] for pid in alive)
