"""What a usable row holds, beside a plain text."""

from __future__ import annotations

from typing import Any, NamedTuple


class Completion(NamedTuple):
    """A prompt, and what the model has to write after it."""

    prompt: str
    completion: str


class Chat(NamedTuple):
    """Messages under the names that templates know: role, content, and what else they hold."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    """JSON schemas."""
