"""A wire from every rank to rank 0, for the messages of every step.

A collective of gloo wakes several threads of every rank in each of its rounds; where ranks share cores that is felt in
every step. Here a rank makes one system call to send and one to receive, in its own thread, and rank 0 two for each of
them.
"""

from __future__ import annotations

import secrets
import socket
import struct
from contextlib import suppress

from trainer.runtime import Runtime

_HELLO = struct.Struct("<16si")  # the attempt's secret, and who speaks
_LENGTH = struct.Struct("<q")
_HELLO_SECONDS = 10.0  # for a stranger who has found the port


class Star:
    def __init__(self, runtime: Runtime) -> None:
        """Collective."""
        secret = secrets.token_bytes(16)
        listener = _listen() if runtime.leads else None
        port, secret = runtime.from_leader(listener and (listener.getsockname()[1], secret))
        self._peers: list[socket.socket] = []
        if listener is not None:
            with listener:
                self._peers = _accept(listener, secret, runtime.world_size - 1, runtime.patience)
        else:
            wire = socket.create_connection((runtime.leader_host, port), runtime.patience)
            wire.sendall(_HELLO.pack(secret, runtime.rank))
            self._peers = [wire]
        for peer in self._peers:
            peer.settimeout(runtime.patience)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: bytes) -> None:
        """Rank 0: to all others. Any other rank: to rank 0."""
        for peer in self._peers:
            peer.sendall(message)

    def receive(self, size: int) -> list[bytes]:
        """Rank 0: a message of every other rank, in their order. Any other rank: rank 0's."""
        return [_receive(peer, size) for peer in self._peers]

    def send_any(self, message: bytes) -> None:
        """Of any size, for `receive_any`."""
        self.send(_LENGTH.pack(len(message)) + message)

    def receive_any(self) -> list[bytes]:
        return [_receive(peer, *_LENGTH.unpack(_receive(peer, _LENGTH.size))) for peer in self._peers]

    def close(self) -> None:
        """Whoever waits for this rank sees that it has left."""
        for peer in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be switched off all the same
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _accept(listener: socket.socket, secret: bytes, count: int, patience: float) -> list[socket.socket]:
    """The wires of ranks 1 to `count`, in their order."""
    listener.settimeout(patience)
    found: dict[int, socket.socket] = {}
    while len(found) < count:
        peer, _ = listener.accept()
        peer.settimeout(_HELLO_SECONDS)
        with suppress(OSError):
            said, rank = _HELLO.unpack(_receive(peer, _HELLO.size))
            if secrets.compare_digest(said, secret):
                found[rank] = peer
                continue
        peer.close()
    return [found[rank] for rank in sorted(found)]


def _receive(peer: socket.socket, size: int) -> bytes:
    data = peer.recv(size)
    if len(data) == size:
        return data
    parts = [data]
    while (size := size - len(data)) > 0:
        if not data:
            raise ConnectionError("a rank has left without a word: see the other ranks' logs")
        data = peer.recv(size)
        parts.append(data)
    return b"".join(parts)
