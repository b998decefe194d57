"""The engines: how weights, gradients and moments lie on the ranks. Each is a folder, called as its `kind`:
settings.py, what a recipe says; plan.py, what it holds in memory and sends; engine.py, which needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal

from settings import Struct


def module_of(engine: Struct, name: Literal["plan", "engine"]) -> Any:
    """Of an engine, by its settings."""
    return import_module(f"{__name__}.{engine.__struct_config__.tag}.{name}")
