"""The launchers, for tests that run under each of them."""

from importlib.util import find_spec

import pytest

_WITHOUT = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
DEEPSPEED = pytest.param("deepspeed", marks=_WITHOUT)
DEEPSPEED_AT_NIGHT = pytest.param("deepspeed", marks=[_WITHOUT, pytest.mark.nightly])
AGENTS = ["torchrun", DEEPSPEED]
LAUNCHERS = ["srun", *AGENTS, "fork"]
