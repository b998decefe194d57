"""The texts that Slurm reads, and the errors that a person reads: no Slurm needed."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envs.pocket import PocketError, layout, process, up
from envs.pocket.cli import main
from envs.pocket.layout import Layout

PLAN = Layout(
    name="pocket",
    nodes=2,
    gpus=4,
    folder=Path("/run/outlast-pocket/pocket"),
    index=3,
    namespaces=True,
    user="root",
    host="vm",
    first_job=7,
)
FLAT = replace(PLAN, namespaces=False, user="ada")


def facts(plan: Layout) -> dict[str, str]:
    lines = layout.slurm_conf(plan).splitlines()
    return dict(line.split("=", 1) for line in lines if line and " " not in line)


def lines_with(plan: Layout, key: str) -> list[str]:
    return [line for line in layout.slurm_conf(plan).splitlines() if line.startswith(key + "=")]


def test_nodes_have_own_addresses() -> None:
    assert lines_with(PLAN, "NodeName") == [
        f"NodeName=node{n} NodeHostname=node{n} NodeAddr=10.213.3.{n} Port=21301 CPUs=64 RealMemory=16000"
        " Gres=gpu:4 State=UNKNOWN"
        for n in (1, 2)
    ]
    assert facts(PLAN)["SlurmctldHost"] == "login(10.213.3.254)"
    assert facts(PLAN)["CommunicationParameters"] == "NoCtldInAddrAny"


def test_nodes_without_namespaces_have_own_ports() -> None:
    assert lines_with(FLAT, "NodeName") == [
        f"NodeName=node{n} NodeHostname=vm NodeAddr=127.0.0.1 Port=2130{n} CPUs=64 RealMemory=16000"
        " Gres=gpu:4 State=UNKNOWN"
        for n in (1, 2)
    ]
    assert facts(FLAT)["SlurmctldHost"] == "vm(127.0.0.1)"
    assert (facts(FLAT)["SlurmUser"], facts(FLAT)["SlurmdUser"]) == ("ada", "ada")
    assert "CommunicationParameters" not in facts(FLAT)


def test_nothing_of_the_systems_slurm_is_used() -> None:
    text = layout.slurm_conf(PLAN)
    assert "/etc/slurm" not in text and "/run/munge" not in text
    assert facts(PLAN)["AuthInfo"] == "socket=/run/outlast-pocket/pocket/munge/socket,cred_expire=5"
    for port in ("6817", "6818"):
        assert port not in text


def test_only_urgent_preempts() -> None:
    tiers = {}
    for line in lines_with(PLAN, "PartitionName"):
        words = dict(word.split("=") for word in line.split())
        tiers[words["PartitionName"]] = (words["PriorityTier"], words["PreemptMode"])
    assert tiers == {
        "batch": ("1", "OFF"),
        "preempt": ("1", "REQUEUE"),
        "nograce": ("1", "REQUEUE"),
        "cancel": ("1", "CANCEL"),
        "urgent": ("10", "OFF"),
    }


def test_no_gpus_no_gres() -> None:
    plan = replace(PLAN, gpus=0)
    assert layout.gres_conf(plan) == ""
    assert "Gres=" not in layout.slurm_conf(plan).replace("GresTypes", "")
    assert layout.gres_conf(PLAN) == "Name=gpu File=/run/outlast-pocket/pocket/gpu/[0-3]\n"


def test_hosts_name_every_node() -> None:
    assert layout.hosts(PLAN).splitlines() == [
        "127.0.0.1 localhost",
        "10.213.3.254 login vm",
        "10.213.3.1 node1",
        "10.213.3.2 node2",
    ]


def test_pockets_share_no_port_and_no_subnet() -> None:
    for index in list(layout.INDEXES)[1:]:
        assert layout.first_port(index) >= layout.first_port(index - 1) + 1 + layout.MAX_NODES
        assert not layout.subnet(index).overlaps(layout.subnet(index - 1))
    assert layout.first_port(layout.INDEXES[-1]) + layout.PORTS_PER_POCKET < 32768


def test_record_comes_back_whole() -> None:
    assert Layout.from_json(PLAN.to_json()) == PLAN


def test_job_ids_grow_with_time() -> None:
    now = 1_795_000_000.0
    assert layout.first_job(now + 1) == layout.first_job(now) + 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"name": "A"}, "pocket name 'A': up to 31 small letters, digits and hyphens, a letter first"),
        ({"nodes": 0}, "a pocket has 1 to 64 nodes, not 0"),
        ({"gpus": -1}, "a node of a pocket has 0 to 64 GPUs, not -1"),
    ],
)
def test_impossible_shapes(shape: dict[str, str | int], words: str) -> None:
    with pytest.raises(PocketError) as caught:
        up(**shape)  # type: ignore[arg-type]
    assert str(caught.value) == words


@pytest.mark.parametrize("name", ["", ".", "..", "/tmp/mine", "a/b"])
@pytest.mark.parametrize("verb", ["down", "status"])
def test_a_name_that_is_no_name_removes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, name: str
) -> None:
    monkeypatch.setenv("OUTLAST_POCKET_DIR", str(tmp_path / "root"))
    (tmp_path / "root" / "other").mkdir(parents=True)
    assert main([verb, "--name", name]) == 1
    assert capsys.readouterr().err.startswith(f"pocket: pocket name {name!r}: ")
    assert (tmp_path / "root" / "other").exists()


def test_path_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTLAST_POCKET_DIR", str(tmp_path / ("deep" * 20)))
    with pytest.raises(PocketError, match="too long a path for sockets: set OUTLAST_POCKET_DIR"):
        up()


def test_daemon_is_found_wherever_its_program_lies() -> None:
    table = {
        1: ["/usr/sbin/slurmd", "-N", "node1"],
        2: ["/sbin/slurmd", "-N", "node2"],
        3: ["vi", "-N", "node2"],
    }
    assert process.find(["slurmd", "-N", "node2"], table) == 2
    assert process.find(["slurmd", "-N", "node3"], table) is None


def test_failed_command_tells_its_words() -> None:
    with pytest.raises(PocketError, match="failed with code 3: oh no$"):
        process.run([sys.executable, "-c", "import sys; print('oh no', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(PocketError, match="did not answer within 0.1 s"):
        process.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.1)
    with pytest.raises(PocketError, match="nosuchd is not installed"):
        process.run(["nosuchd"])
