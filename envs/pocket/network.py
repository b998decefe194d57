"""The nodes' network: one namespace with a virtual cable for each node, and one for the switch between them.

The switch is a bridge in a namespace of its own: on this machine's side, packet filters such as Docker's
would drop what the nodes send to each other. The cable of the login carries the folder as an alias, so that
leftovers are known even when the folder is gone.
"""

import json
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from envs.pocket.errors import PocketError
from envs.pocket.layout import INDEXES, LOGIN, SWITCH, Layout, first_port, subnet
from envs.pocket.process import command_lines, run

NAMESPACES = Path("/run/netns")
LINKS = Path("/sys/class/net")


def allowed() -> bool:
    """Tries it in a throw-away namespace: containers often refuse, and some kernels lack veth or bridge."""
    if os.getuid() != 0:
        return False
    batch = "link add olp type bridge\nlink add olp-a type veth peer name olp-b\n"
    try:
        run(["unshare", "--net", "--uts", "--mount", "ip", "-batch", "-"], stdin=batch)
    except PocketError:
        return False
    return True


def claim_index(folder: Path, ports: int, namespaces: bool) -> int:
    """A free index. With namespaces, creating the switch is the claim: it succeeds for one only.

    Without, its ports are taken only when its daemons listen. So it looks from the other end: one with namespaces that
    comes up at the same time, under another user's root, would see the same ports free.
    """
    subnets = _subnets_in_use() if namespaces else []
    for index in INDEXES if namespaces else reversed(INDEXES):
        if any(used.subnet_of(subnet(index)) for used in subnets):
            continue
        if not _ports_free(first_port(index), ports):
            continue
        if not namespaces or _create_switch(f"olp{index}", folder):
            return index
    raise PocketError("no free ports and subnet for one more pocket: `down` one of those running")


def connect(layout: Layout) -> None:
    """Nodes, cables, addresses; the switch with the login's cable in it stands already (see claim_index)."""
    _ip([f"netns add {layout.namespace(node)}" for node in layout.node_names])
    bridge = ["link add bridge type bridge", "link set bridge up", f"link set {LOGIN} master bridge up"]
    for node in layout.node_names:
        bridge.append(f"link add {node} type veth peer name eth0 netns {layout.namespace(node)}")
        bridge.append(f"link set {node} master bridge up")
    _ip(bridge, inside=layout.namespace(SWITCH))
    _ip([f"addr add {layout.controller_address}/24 dev {layout.cable}", f"link set {layout.cable} up"])
    for node in layout.node_names:
        address = f"addr add {layout.address(node)}/24 dev eth0"
        _ip([address, "link set eth0 up", "link set lo up"], inside=layout.namespace(node))


def set_link(layout: Layout, node: str, up: bool) -> None:
    """The switch's end: the node sees its cable pulled, and cannot mend it."""
    _ip([f"link set {node} {'up' if up else 'down'}"], inside=layout.namespace(SWITCH))


def inside(layout: Layout, host: str) -> list[str]:
    """Prefix that runs a command on a node, or on the login: its network, its hostname, its /etc/hosts.

    Not `ip netns exec`: that remounts /sys, and slurmd no longer finds the cgroups it looks for at its start.
    `slave`: what the machine mounts later is seen there too, while the own /etc/hosts stays inside.
    """
    network = [] if host == LOGIN else ["nsenter", f"--net={NAMESPACES / layout.namespace(host)}"]
    names = ["unshare", "--uts", "--mount", "--propagation=slave"]
    script = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
    return [*network, *names, "sh", "-c", script, host, str(layout.hosts)]


def processes(namespace: str) -> Iterator[int]:
    """All that lives on a node: slurmd, slurmstepd, batch scripts, ranks."""
    try:
        home = (NAMESPACES / namespace).stat()
    except FileNotFoundError:
        return
    for pid in command_lines():
        try:
            seen = Path(f"/proc/{pid}/ns/net").stat()
        except OSError:  # it ended, or is a zombie
            continue
        if (seen.st_dev, seen.st_ino) == (home.st_dev, home.st_ino):
            yield pid


def leftovers(folder: Path) -> tuple[list[str], list[str]]:
    """Cables and namespaces that belong to the pocket of this folder."""
    cables = [link.name for link in LINKS.glob("olp*") if _alias(link) == _mark(folder)]
    namespaces = [path.name for cable in cables for path in NAMESPACES.glob(f"{cable}-*")]
    return cables, namespaces


def remove(cables: list[str], namespaces: list[str]) -> None:
    """Nodes first: a `down` that is cut short leaves the cable, by which the next one knows the rest."""
    switches = [name for name in namespaces if name.endswith(SWITCH)]
    nodes = [name for name in namespaces if name not in switches]
    _ip([f"netns del {name}" for name in nodes])
    _ip([f"link del {name}" for name in cables])
    _ip([f"netns del {name}" for name in switches])


def _ip(lines: list[str], inside: str | None = None) -> None:
    run(["ip", *(["-n", inside] if inside else []), "-batch", "-"], stdin="\n".join(lines) + "\n")


def _create_switch(cable: str, folder: Path) -> bool:
    switch = f"{cable}-{SWITCH}"
    try:
        run(["ip", "netns", "add", switch])
    except PocketError as error:
        if "File exists" in str(error):
            return False
        raise
    _ip([f"link add {cable} type veth peer name {LOGIN} netns {switch}"])
    (LINKS / cable / "ifalias").write_text(_mark(folder))
    return True


def _mark(folder: Path) -> str:
    return f"outlast-pocket {folder}"


def _alias(link: Path) -> str:
    try:
        return (link / "ifalias").read_text().strip()
    except OSError:  # removed by another pocket's `down` meanwhile
        return ""


def _subnets_in_use() -> list[IPv4Network]:
    routes = json.loads(run(["ip", "-4", "-json", "route", "show", "table", "all"]))
    networks = [route["dst"] for route in routes if route["dst"] != "default"]
    return [IPv4Network(text, strict=False) for text in networks]


def _ports_free(first: int, count: int) -> bool:
    for port in range(first, first + count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
