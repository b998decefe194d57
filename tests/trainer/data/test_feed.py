from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest

from trainer.data.batches import RankBatch
from trainer.data.feed import Feed


def batch(number: int) -> RankBatch:
    return RankBatch([], valid_tokens=number, hash=0, pairs=0)


def test_batches_come_in_order_and_then_none() -> None:
    with Feed(batch(i) for i in range(3)) as feed:
        taken = []
        for _ in range(4):
            assert feed.ready(10)
            assert feed.next is feed.next
            taken.append(feed.take())
    assert taken == [batch(0), batch(1), batch(2), None]


def test_a_read_that_hangs_holds_up_nothing_but_its_batch() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[RankBatch]:
        yield batch(0)
        assert go_on.wait(120)
        yield batch(1)

    with Feed(slow()) as feed:
        assert feed.ready(10)
        feed.take()
        assert not feed.ready(0.05)
        assert feed.read_wait() >= 0.05 and feed.read_wait() == 0
        go_on.set()
        assert feed.ready(10) and feed.take() == batch(1)


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_an_error_of_the_reading_is_raised_where_the_batch_is_wanted(number: int) -> None:
    """Also one that Python calls a TimeoutError, as a future does the time that a caller is ready to wait."""

    def broken() -> Iterator[RankBatch]:
        yield batch(0)
        raise OSError(number, "the disk is gone")

    with Feed(broken()) as feed:
        assert feed.ready(10) and feed.take() == batch(0)
        with pytest.raises(OSError, match="gone"):
            feed.ready(10)
