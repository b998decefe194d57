"""Stop signals: a handler that remembers, and nothing else. Standard library only, since it stands first."""

from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

_received: list[int] = []


def install() -> None:
    """Handlers first, then unblock: a signal that came earlier waited (the launcher blocks them) and is not lost."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, lambda number, frame: _received.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def received() -> signal.Signals | None:
    """The first stop signal that this process got."""
    return signal.Signals(_received[0]) if _received else None
