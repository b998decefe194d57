"""How the rows of each data.format are read: a module of that name with `value`. What they become is theirs to say in
trainer/sources.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

Read = Callable[[dict[str, Any], dict[str, str]], Any]
"""A row's columns, and our name -> the file's, to a text, a Completion or a Chat. Raises Unusable."""


@cache
def reader(kind: str) -> Read:
    read: Read = import_module(f"{__name__}.{kind}").value
    return read
