"""Exit codes: the trainer's word to whoever started it."""

DONE = 0
CRASHED = 1
CONTINUE = 75
"""Saved, as far as there was something to save; start me again."""
FENCED = 76
"""Another attempt owns the run."""
STOPPED = 77
"""Ended by the user's word."""
CONFIG = 78
"""Configuration error: starting again cannot help."""
HANG = 86
"""No sign of life for too long: the stacks of all ranks are in the attempt's logs."""
NO_PROGRESS = 93
"""What ended an attempt has ended this one again: starting again cannot help."""
