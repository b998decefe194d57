"""What the workers of one `pytest -n` must not share."""

from __future__ import annotations

import os

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""gw0, gw1, ...; empty in a run without workers."""


def own(name: str) -> str:
    """This worker's pocket of that name."""
    return f"{name}-{WORKER}" if WORKER else name
