from __future__ import annotations

import socket
from pathlib import Path

import pytest

from slurm.errors import RendezvousFailed
from slurm.node import rendezvous


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


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the site's name service knows."""
    known: dict[str, str] = {}

    def look_up(host: str, *_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(2, 1, 6, "", (known[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def test_a_site_has_another_name_for_the_fast_interface(
    names: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    names |= {"jwb1": "10.1.0.1", "jwb1i": "10.2.0.1", "jwb1i.juwels": "10.2.0.1"}
    assert rendezvous.find_address("jwb1", None, "i") == "10.2.0.1"
    assert rendezvous.find_address("jwb1.juwels", None, "i") == "10.2.0.1" and not capsys.readouterr().out
    del names["jwb1i"]  # better a slow meeting than none, but said
    assert rendezvous.find_address("jwb1", None, "i") == "10.1.0.1"
    assert "10.1.0.1 of jwb1 is by its name (name jwb1i: Name or service not known)" in capsys.readouterr().out


def test_where_the_name_hides_it_the_fast_interface_says(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"lo": "127.0.0.1", "em4": "10.1.0.1", "ib0": "10.2.0.1", "ib1": "10.2.0.2"}
    monkeypatch.setattr(rendezvous, "addresses", lambda: here)
    names["n1"] = "127.0.1.1"
    assert rendezvous.find_address("n1", None, interfaces="ib") == "10.2.0.1"
    with pytest.raises(RendezvousFailed, match="interface hsn: no such interface with an address is here"):
        rendezvous.find_address("n1", None, interfaces="hsn")
    for pattern, found in (("ib", ["ib0", "ib1"]), ("=ib", []), ("=ib1,em4", ["ib1", "em4"]), ("^ib", []), ("ib1,ib", ["ib1", "ib0", "ib1"])):  # fmt: skip
        assert rendezvous.named(pattern) == found
    assert rendezvous.gloo_interface("n1", "127.0.0.1", "ib") == "ib0"  # gloo would look for one that is called ib


def test_a_sites_variables_where_nobody_has_set_them() -> None:
    site = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "no-such", "NCCL_IB_TIMEOUT": "18"}
    theirs = {"NCCL_IB_TIMEOUT": "22"}
    assert rendezvous.network(site, theirs) == {
        "NCCL_SOCKET_IFNAME": "lo"
    }  # NCCL ends where there is no such interface
    assert rendezvous.nccl_interfaces(site, theirs) == "lo"
    assert rendezvous.nccl_interfaces(site, {"NCCL_SOCKET_IFNAME": "eth0"}) == "eth0"
    assert rendezvous.network({"NCCL_SOCKET_IFNAME": "^lo"}, {}) == {"NCCL_SOCKET_IFNAME": "^lo"}


def test_peers_read_what_the_first_node_published(tmp_path: Path) -> None:
    file = tmp_path / "rendezvous.json"
    meeting, held = rendezvous.publish(file, "node1", None, nodes=1, seed="s")
    held.close()
    assert rendezvous.wait(file, 1.0) == meeting == rendezvous.Rendezvous("127.0.0.1", meeting.master_port)


def test_a_first_node_that_never_comes_is_said(tmp_path: Path) -> None:
    with pytest.raises(RendezvousFailed, match="not published within 0 s"):
        rendezvous.wait(tmp_path / "rendezvous.json", 0.0)
