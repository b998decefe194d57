"""What a usable row becomes: a text, or one of these."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Form = Literal["text", "chat", "completion"]
Dtype = Literal["uint16", "uint32"]
"""Of tokens that are kept."""


class Completion(NamedTuple):
    """A prompt, and what the model has to write after it."""

    prompt: str
    completion: str


class Chat(NamedTuple):
    """Messages under the names that templates know: role, content, and what else they hold."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    """JSON schemas."""
