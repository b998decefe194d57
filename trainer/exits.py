"""Exit codes: the trainer's word to whoever started it."""

DONE = 0
CRASHED = 1
CONTINUE = 75
"""Saved; start me again."""
FENCED = 76
"""Another attempt owns the run."""
STOPPED = 77
"""Ended by the user's word."""
CONFIG = 78
"""Configuration error: starting again cannot help."""
