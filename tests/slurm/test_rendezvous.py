from __future__ import annotations

import socket
from pathlib import Path

import pytest

from slurm import rendezvous
from slurm.errors import RendezvousFailed


def test_no_candidate_lies_in_the_ephemeral_range() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = list(rendezvous.candidates("seed"))
    assert len(ports) > 1000 and not [port for port in ports if low <= port <= high]
    assert ports == list(rendezvous.candidates("seed")) != list(rendezvous.candidates("other"))


def test_taken_candidates_are_passed_over() -> None:
    candidates = rendezvous.candidates("taken")  # somebody else on this host may have one of them
    held = [rendezvous.reserve_port(candidates) for _ in range(4)]
    ports = [one.getsockname()[1] for one in held]
    held.pop().close()
    with rendezvous.reserve_port(iter(ports)) as fourth:
        assert fourth.getsockname()[1] == ports[3]
    for one in held:
        one.close()


def test_a_held_port_is_refused_to_others_and_open_to_its_own_listener() -> None:
    with rendezvous.reserve_port(rendezvous.candidates("own")) as held:
        port = held.getsockname()[1]
        with pytest.raises(RendezvousFailed):
            rendezvous.reserve_port(iter([port]))
        listener = socket.create_server(("", port))  # sets SO_REUSEADDR first, as torch's store does
        with listener, socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()


def test_torchs_store_listens_on_a_held_port() -> None:
    from torch.distributed import TCPStore

    with rendezvous.reserve_port(rendezvous.candidates("store")) as held:
        port = held.getsockname()[1]
        store = TCPStore("127.0.0.1", port, world_size=1, is_master=True)
        store.set("key", "value")
        assert TCPStore("127.0.0.1", port, is_master=False).get("key") == b"value"


def test_loopback_is_refused_with_the_rule_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: [(2, 1, 6, "", ("127.0.1.1", 0))])
    with pytest.raises(
        RendezvousFailed, match=r"name: 127.0.1.1 is a loopback address; route: srun's address is not known"
    ):
        rendezvous.find_address("node1", None)
    with pytest.raises(RendezvousFailed, match=r"route: 127.0.0.1 is a loopback address"):
        rendezvous.find_address("node1", "127.0.0.1")


def test_peers_read_what_the_first_node_published(tmp_path: Path) -> None:
    file = tmp_path / "rendezvous.json"
    meeting, held = rendezvous.publish(file, "node1", None, nodes=1, seed="s")
    held.close()
    assert rendezvous.wait(file, 1.0) == meeting == rendezvous.Rendezvous("127.0.0.1", meeting.master_port)


def test_a_first_node_that_never_comes_is_said(tmp_path: Path) -> None:
    with pytest.raises(RendezvousFailed, match="not published within 0 s"):
        rendezvous.wait(tmp_path / "rendezvous.json", 0.0)
