"""Exit codes: a rank's word to its shim and its supervisor. The trainer's half has the same. Standard library only."""

import signal

DONE = 0
CONTINUE = 75
"""Saved; start me again."""
FENCED = 76
"""Another attempt owns the run."""
STOPPED = 77
"""Ended by the user's word, or by a limit that the user set."""
CONFIG = 78
"""Configuration error: starting again cannot help."""
UNFIT = 79
"""A shim's: its node is no place for ranks."""
HANG = 86
NO_PROGRESS = 93

STOP_SIGNALS = frozenset({signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})
BY_A_STOP = frozenset({*(-signum for signum in STOP_SIGNALS), *(128 + signum for signum in STOP_SIGNALS)})
"""What a foreign command may die of when it is asked to stop; by a shell the second."""

AGREED = (DONE, CONTINUE, FENCED, STOPPED)
"""Codes with which a rank ended as all ranks agreed; every other end is a failure of its own."""
