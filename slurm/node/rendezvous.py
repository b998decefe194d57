"""How ranks find each other: one address and one port, chosen on the first node and published in the run folder.

Standard library only: every rank's shim imports it.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from durable import write_atomic
from slurm.errors import RendezvousFailed

_PORTS = range(15000, 32768)  # below the kernel's default ephemeral range (32768-60999)
_SIOCGIFADDR = 0x8915
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True)
class Rendezvous:
    master_addr: str
    master_port: int


def publish(
    file: Path, host: str, launch_address: str | None, nodes: int, seed: str, suffix: str = "", interfaces: str = ""
) -> tuple[Rendezvous, socket.socket]:
    """Choose and publish the meeting point. The socket holds the port until rank 0's process has ended."""
    address = "127.0.0.1" if nodes == 1 else find_address(host, launch_address, suffix, interfaces)
    reservation = reserve_port(candidates(seed))
    meeting = Rendezvous(address, reservation.getsockname()[1])
    write_atomic(file, json.dumps(meeting.__dict__))
    return meeting, reservation


def wait(file: Path, timeout: float, keep_waiting: Callable[[], bool] = lambda: True) -> Rendezvous:
    """The meeting point that the first node publishes. Raises RendezvousFailed after `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and keep_waiting():
        os.listdir(file.parent)  # NFS clients cache the absence of a file until its folder is read again
        try:
            return Rendezvous(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            time.sleep(0.05)
    raise RendezvousFailed(f"{file}: not published within {timeout:.0f} s: see the first node's log beside it")


def candidates(seed: str) -> Iterator[int]:
    """Ports in an order of the seed's, none of which the kernel hands out to others."""
    try:
        low, high = map(int, _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    ports = [port for port in _PORTS if not low <= port <= high]
    random.Random(seed).shuffle(ports)
    return iter(ports)


def reserve_port(ports: Iterator[int]) -> socket.socket:
    """The first candidate that is free, held.

    SO_REUSEADDR is set only after bind: another shim's plain bind then fails and takes its next candidate, while rank
    0's own listener, which sets the option before, may bind the same port. So no moment is left for a third to take it.
    """
    for port in ports:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.bind(("", port))
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return held
        except OSError as error:
            held.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    raise RendezvousFailed("every port from 15000 to 32767 outside the ephemeral range is taken on this host")


def find_address(host: str, launch_address: str | None, suffix: str = "", interfaces: str = "") -> str:
    """An address of this host that its peers can reach. Loopback is refused: it would hang the others (seen often).

    `suffix`: what makes its name that of its fast interface (at Juelich i); `interfaces`: as in NCCL_SOCKET_IFNAME.
    """
    fast = with_suffix(host, suffix)
    rules: dict[str, Callable[[], str]] = {f"name {fast}": lambda: _by_name(fast)} if suffix else {}
    rules["name"] = lambda: _by_name(host)
    if interfaces:
        rules[f"interface {interfaces}"] = lambda: _by_interface(interfaces)
    rules["route"] = lambda: _by_route(launch_address)
    tried: list[str] = []
    for rule, find in rules.items():
        try:
            address = find()
        except OSError as error:
            tried.append(f"{rule}: {error.strerror or error}")
            continue
        if not ipaddress.ip_address(address).is_loopback:
            if tried:
                print(f"outlast: the address {address} of {host} is by its {rule} ({'; '.join(tried)})")
            return address
        tried.append(f"{rule}: {address} is a loopback address")
    raise RendezvousFailed(
        f"no address of {host} that other nodes can reach ({'; '.join(tried)}): its site must name it"
    )


def _by_name(host: str) -> str:
    """What the site's own name service says of this host, its first address that is not loopback."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)]
    return next((a for a in found if not ipaddress.ip_address(a).is_loopback), found[0])


def _by_route(launch_address: str | None) -> str:
    """The address from which this host reaches the host that runs srun."""
    if launch_address is None:
        raise OSError(errno.EADDRNOTAVAIL, "srun's address is not known")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((launch_address, 9))  # UDP: looks the route up, sends nothing
        return str(probe.getsockname()[0])


def with_suffix(host: str, suffix: str) -> str:
    """jwb0001i of jwb0001, jwb0001i.site of jwb0001.site."""
    name, dot, domain = host.partition(".")
    return f"{name}{suffix}{dot}{domain}"


def _by_interface(interfaces: str) -> str:
    """The address of the first one here that NCCL would take."""
    found = named(interfaces)
    if not found:
        raise OSError(errno.ENODEV, "no such interface with an address is here")
    return addresses()[found[0]]


def addresses() -> dict[str, str]:
    """IPv4 address of each interface of this host that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                found[name] = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
    return found


def named(interfaces: str) -> list[str]:
    """Those here with an address that NCCL_SOCKET_IFNAME names: beginnings of names, behind = whole ones. A list of
    those to leave out (^) names none."""
    words = [] if interfaces.startswith("^") else interfaces.removeprefix("=").split(",")
    whole = interfaces.startswith("=")
    return [name for word in words for name in addresses() if name == word or (not whole and name.startswith(word))]


def network(site: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The site's variables that nobody has set, without interfaces that this node has not: NCCL would end there."""

    def fits(name: str, value: str) -> bool:
        return not name.endswith("_SOCKET_IFNAME") or value.startswith("^") or bool(named(value))

    return {name: value for name, value in site.items() if name not in environ and fits(name, value)}


def nccl_interfaces(site: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> str:
    """NCCL_SOCKET_IFNAME of the ranks; empty: nobody names one."""
    return {**network(site, environ), **environ}.get("NCCL_SOCKET_IFNAME", "")


def gloo_interface(host: str, peer: str, interfaces: str = "") -> str | None:
    """NCCL's first interface, since gloo knows no beginnings of names; else the one towards the peers, where gloo's own
    look-up of the host name would find loopback or nothing."""
    if interfaces and (found := named(interfaces)):
        return found[0]
    with suppress(OSError):
        if not socket.gethostbyname(host).startswith("127."):
            return None
    address = _by_route(peer)
    return next((name for name, own in addresses().items() if own == address), None)
