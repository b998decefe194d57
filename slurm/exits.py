"""Exit codes: a rank's word to its shim and its supervisor. The trainer's half has the same. Standard library only."""

DONE = 0
CONTINUE = 75
"""Saved; start me again."""
FENCED = 76
"""Another attempt owns the run."""
STOPPED = 77
"""Ended by the user's word, or by a limit that the user set."""
CONFIG = 78
"""Configuration error: starting again cannot help."""
HANG = 86
NO_PROGRESS = 93

AGREED = (DONE, CONTINUE, FENCED, STOPPED)
"""Codes with which a rank ended as all ranks agreed; every other end is a failure of its own."""
