"""A list of messages a row."""

from __future__ import annotations

from typing import Any

import msgspec

from trainer.data.columns import column
from trainer.data.readers import Unusable
from trainer.data.values import Chat
from trainer.sources import ROLES


def value(row: dict[str, Any], names: dict[str, str]) -> Chat:
    messages = column(row, names["messages"])
    if not isinstance(messages, list):
        raise Unusable(f"'{names['messages']}' is not a list of messages")
    if not messages:
        raise Unusable("empty")
    messages = [_message(message, names) for message in messages]
    if not any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages):
        raise Unusable("no completion tokens")
    return Chat(messages, _tools(row.get(names["tools"])))


def _message(message: Any, names: dict[str, str]) -> dict[str, Any]:
    """A message under the names that templates know."""
    role, content = names["role"], names["content"]
    shape = f"a message is not {{{role}, {content}}} with a text as {content}"
    if not isinstance(message, dict):
        raise Unusable(shape)
    # A columnar file gives every message the fields of all of them; a call of tools needs no words.
    message = {key: value for key, value in message.items() if value is not None}
    said = message.pop(content, "" if message.get("tool_calls") else None)
    if not isinstance(said, str):
        raise Unusable(shape)
    by_name = {names[ours]: ours for ours in ROLES}
    spoken_by = message.pop(role, None)
    if not isinstance(spoken_by, str) or spoken_by not in by_name:
        raise Unusable("unknown role")
    return {"role": by_name[spoken_by], "content": said, **message}


def _tools(tools: Any) -> list[Any] | None:
    """A list of JSON schemas, or that as a text: a column of a table has one type."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = msgspec.json.decode(tools)
        except msgspec.DecodeError:
            raise Unusable("the tools are not valid JSON") from None
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Unusable("the tools are not a list of JSON schemas")
    return tools or None
