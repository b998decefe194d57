"""What stands in a column of a row."""

from __future__ import annotations

from typing import Any

from trainer.data.readers import Unusable


def string(row: dict[str, Any], name: str) -> str:
    """Raises Unusable."""
    value = column(row, name)
    if not isinstance(value, str):
        raise Unusable(f"'{name}' is not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unusable("not valid UTF-8") from None
    return value


def column(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise Unusable(f"no column '{name}'")
    return row[name]
