"""What a vote says and how votes are counted; the wires that they travel on; moments of a clock that is set."""

from __future__ import annotations

import errno
import math
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import exits
from trainer.runtime import Runtime
from trainer.stop import star
from trainer.stop.lead import LeadTime
from trainer.stop.star import Star
from trainer.stop.stop import Moment, Stop
from trainer.stop.votes import AGREEMENT, REASONS, VOTE, Agreement, Vote, count

GO_ON = len(REASONS) - 1
INT64 = st.integers(-(2**63), 2**63 - 1)
VOTES = st.builds(
    Vote,
    st.integers(0, GO_ON),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**40),
    INT64,
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(0, 1e6),
)


@given(st.lists(VOTES, min_size=1, max_size=9))
def test_votes_and_agreements_survive_their_wire(votes: list[Vote]) -> None:
    assert [Vote(*VOTE.unpack(VOTE.pack(*vote))) for vote in votes] == votes
    agreement = count(votes)
    assert Agreement(*AGREEMENT.unpack(AGREEMENT.pack(*agreement))) == agreement


@given(st.lists(VOTES, min_size=1, max_size=9))
def test_the_count(votes: list[Vote]) -> None:
    agreement = count(votes)
    wanted = [REASONS[vote.reason] for vote in votes if vote.reason != GO_ON]
    assert agreement.reason == min(wanted, key=REASONS.index, default=None)
    assert agreement.waiting == sum(vote.waiting for vote in votes)
    assert agreement.saved == all(vote.saved for vote in votes)
    assert agreement.due == any(vote.due for vote in votes)
    assert (agreement.hash - sum(vote.hash for vote in votes)) % 2**64 == 0
    assert agreement.valid_tokens == sum(vote.valid_tokens for vote in votes)
    assert agreement.loss == pytest.approx(math.fsum(vote.loss for vote in votes), rel=1e-9, abs=1e-3)


def test_a_fenced_attempt_obeys_nobody_else_and_the_user_comes_before_slurm() -> None:
    def agreed(*reasons: str) -> Agreement:
        return count([Vote(REASONS.index(reason), False, False, False, 0, 0, 0.0, 0.0) for reason in reasons])

    assert agreed("stop file", "fenced").code == exits.FENCED and not agreed("stop file", "fenced").may_save
    assert agreed("signal SIGTERM", "stop file").code == exits.STOPPED
    assert agreed("deadline", "signal SIGTERM").code == exits.CONTINUE and agreed("deadline").may_save


# --- the wires ------------------------------------------------------------------------------------------


class Peers:
    """The part of a runtime that a star needs, for ranks in threads."""

    def __init__(self, world: int) -> None:
        self.world_size, self.leader_host, self.patience = world, "127.0.0.1", 20.0
        self._value: Any = None
        self._there = threading.Event()

    def rank(self, rank: int) -> Runtime:
        peers = self

        class Rank:
            leads, world_size, leader_host, patience = rank == 0, peers.world_size, peers.leader_host, peers.patience

            def from_leader(self, value: Any) -> Any:
                if rank == 0:
                    peers._value = value
                    peers._there.set()
                assert peers._there.wait(120)
                return peers._value

        found = Rank()
        found.rank = rank  # type: ignore[attr-defined]
        return found  # type: ignore[return-value]


def test_messages_come_in_the_order_of_the_ranks_and_strangers_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(star, "_HELLO_SECONDS", 0.2)
    peers, heard = Peers(4), dict[int, list[bytes]]()

    def run(rank: int) -> None:
        wires = Star(peers.rank(rank))
        if rank == 0:
            heard[0] = wires.receive(3)
            wires.send(b"all")
        else:
            wires.send(f"r {rank}".encode())
            heard[rank] = wires.receive(3)
        for peer in wires._peers:
            peer.close()

    leader = threading.Thread(target=run, args=(0,))
    leader.start()
    assert peers._there.wait(120)
    port = peers._value[0]
    silent = socket.create_connection(("127.0.0.1", port))
    liar = socket.create_connection(("127.0.0.1", port))
    liar.sendall(star._HELLO.pack(b"no such secret!!", 1))
    ranks = [threading.Thread(target=run, args=(rank,)) for rank in (3, 1, 2)]
    for thread in ranks:
        thread.start()
    for thread in (leader, *ranks):
        thread.join(20)
    silent.close()
    liar.close()
    assert heard == {0: [b"r 1", b"r 2", b"r 3"], 1: [b"all"], 2: [b"all"], 3: [b"all"]}


def test_a_peer_that_has_gone_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b"ab")
    theirs.close()
    with ours, pytest.raises(ConnectionError, match="left without a word"):
        star._receive(ours, 3)


# --- moments --------------------------------------------------------------------------------------------


def test_a_moment_stays_where_it_was_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    moment, now = Moment(), time.time()
    assert moment.seconds_left() is None
    moment.hear(now + 100)
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    moment.hear(now + 100)  # the file says the same as before
    moment.hear(None)  # or cannot be read
    assert moment.seconds_left() == pytest.approx(100, abs=5)
    moment.hear(now + 3700)  # it has moved
    assert moment.seconds_left() == pytest.approx(100, abs=5)


def test_a_look_that_fails_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that fails over answers EIO or ESTALE for some seconds: what was known before counts."""
    runtime = SimpleNamespace(run_dir=tmp_path, epoch=1, deadline=None, leads=True)
    stop = Stop(runtime, Mock(), LeadTime([]), lambda: None)  # type: ignore[arg-type]
    (tmp_path / "claims").mkdir()
    (tmp_path / "stop").touch()
    stop._look()
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        patched.setattr(Path, "exists", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
        (tmp_path / "stop").unlink()
        stop._look()
        assert stop._asked() == "stop file"
    stop._look()
    assert stop._asked() is None
