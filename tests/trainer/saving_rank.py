"""`python -m tests.trainer.saving_rank RUN_DIR ADDRESS`: a rank that does what it is told at the socket ADDRESS."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.trainer.saving import Rank

if __name__ == "__main__":
    Rank(Path(sys.argv[1]), sys.argv[2]).obey()
