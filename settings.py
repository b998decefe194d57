"""Typed settings from YAML: the one reader that slurm/ and trainer/ share.

YAML 1.2 core schema (plain PyYAML follows 1.1: it reads `24:00:00` as 86400 and `1e-5` as text), no duplicate
keys, and every mistake of a user as one line: file, key, value, what is allowed, the nearest valid name.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import msgspec
import yaml

T = TypeVar("T")


class ConfigError(Exception):
    """A user's mistake in one line: what, where, what to do. Ends a command or a run with its exit code."""

    exit_code = 78


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every typed setting. A field's meaning stands under the field, with its unit."""


LAYOUT = msgspec.Meta(extra={"change": "layout"})
"""Mark of a field that may change between the attempts of a run; the others make it what it is."""
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Seconds = Positive


# --- YAML 1.2 -------------------------------------------------------------------------------------------

_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    for _char in _first:
        _key = "" if _char == "\0" else _char
        _RESOLVERS.setdefault(_key, []).append((f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$")))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    yaml_implicit_resolvers = _RESOLVERS

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                where = node.value[index][0].start_mark
                raise ConfigError(f"line {where.line + 1}: the key '{key}' stands twice: keep one")
        return dict(super().construct_mapping(node, deep))


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    # The reader's own table, so that the text "1e-5" is written quoted and comes back as text.
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    try:
        return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    except ValueError:  # Python reads no number of thousands of digits
        raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark) from None


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node)
    return float(text.replace(".inf", "inf").replace(".nan", "nan").lower() if "n" in text.lower() else text)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML 1.2 text; `source` names it in errors."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain data only
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not YAML: {getattr(error, 'problem', error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file (an empty file is an empty mapping)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        hint = f": did you mean {path.with_name(near)}?" if near else ""
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    data = parse_yaml(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of keys is expected, this is a {type(data).__name__}")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConfigError with the line of a mistake."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        before = error.doc[: error.pos].rstrip()
        comma = before.endswith(",") and error.doc[error.pos : error.pos + 1] in "}]"
        comma |= error.msg.startswith("Illegal trailing comma")  # from Python 3.13 on
        line = before.count("\n") + 1 if comma else error.lineno
        what = "a comma with nothing after it: remove it" if comma else f"not JSON: {error.msg}"
        raise ConfigError(f"{path} line {line}: {what}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: an object of keys is expected, this is a {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for index, (key, _) in enumerate(pairs):
        if key in [name for name, _ in pairs[:index]]:
            raise ConfigError(f"the key '{key}' stands twice: keep one")
    return dict(pairs)


def dump_yaml(data: Any) -> str:
    """YAML text in the order of the keys; read back by `parse_yaml` as the same value."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


# --- trees ----------------------------------------------------------------------------------------------


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, key by key down the tree; what is not a mapping replaces. A list's entries that have names
    are called by them: {stages: {task: ...}}. Raises ConfigError for a name that none has."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(value, Mapping) and isinstance(old, list) and (names := _names(old)):
            if unknown := [name for name in value if name not in names]:
                raise ConfigError(f"{key}.{unknown[0]}: no entry has that name: {_hint(str(unknown[0]), names)}")
            value = list(merge(dict(zip(names, old, strict=True)), value).values())
        # Another `kind` is another set of fields: the old kind's fields must not leak into it.
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            kinds = {tree["kind"] for tree in (old, value) if "kind" in tree}
            value = merge(old, value) if len(kinds) < 2 else value
        out[key] = value
    return out


def _names(entries: list[Any]) -> list[str]:
    """Of a list's entries; none: not each has one of its own."""
    names = [entry["name"] for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("name"), str)]
    return names if len(set(names)) == len(entries) else []


def override(tree: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """The tree with `dotted.key=value` applied; the value is read as YAML."""
    key, equals, text = assignment.partition("=")
    if not equals or not key or not all(key.split(".")):
        raise ConfigError(f"'{assignment}': an override is written key=value, for example optim.lr=2e-5")
    value = parse_yaml(text, assignment)
    for part in reversed(key.split(".")):
        value = {part: value}
    return merge(tree, value)


def expanded(path: str, named: str) -> str:
    """With the $VARIABLES of this shell; `named`: whose path it is. Raises ConfigError for one that is not set."""
    found = os.path.expandvars(path)
    if unset := re.search(r"\$\{?(\w+)", found):
        raise ConfigError(f"{named}={path}: {unset[1]} is not set in this shell")
    return found


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name that a mistyped one most likely meant."""
    import difflib  # 1 ms, which only a mistake has use for

    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return found[0] if found else None


# --- typed ----------------------------------------------------------------------------------------------


def convert(data: Mapping[str, Any], kind: type[T], source: str) -> T:
    """`data` as the typed settings `kind`; one line names the first key that does not fit."""
    _check_keys(data, kind, source, "")
    try:
        return msgspec.convert(data, kind, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_named(str(error), data, kind)}") from None


def to_plain(settings: Any) -> Any:
    """Plain data with every default written out; `convert` reads it back."""
    return msgspec.to_builtins(settings, enc_hook=str)


def _from_text(kind: type[Any], value: Any) -> Any:
    """Types that are written as text: each has a `parse` that raises ValueError with the reason."""
    return value if isinstance(value, kind) else kind.parse(value)


def _check_keys(data: Any, kind: Any, source: str, path: str) -> None:
    """Unknown keys and unknown words, with the nearest valid one; msgspec's own messages name neither."""
    for inside, value, inner in _inside(data, kind, path):
        _check_keys(value, inner, source, inside)
    options = _structs(kind)
    if not options or not isinstance(data, Mapping):
        return
    struct, tag = options[0], options[0].__struct_config__.tag_field
    if len(options) > 1 and tag is not None:
        by_tag = {str(option.__struct_config__.tag): option for option in options}
        if data.get(tag) not in by_tag:
            raise ConfigError(f"{source}: {path}{tag}={data.get(tag)}: {_hint(str(data.get(tag)), by_tag)}")
        struct = by_tag[data[tag]]
    hints = _hints(struct)
    names = [*hints, *([tag] if tag else [])]
    for key, value in data.items():
        if key not in names:
            raise ConfigError(f"{source}: unknown key {path}{key}: {_hint(str(key), names, path)}")
        words = typing.get_args(hints[key]) if typing.get_origin(hints.get(key)) is Literal else ()
        if words and value not in words:
            raise ConfigError(f"{source}: {path}{key}={value}: {_hint(str(value), words)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{source}: {path}{key}={value}: a finite number is expected")
        _check_keys(value, hints.get(key), source, f"{path}{key}.")


@functools.cache
def _hints(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The type of each key, as it is written."""
    found = typing.get_type_hints(struct)
    return {
        key: found[name] for key, name in zip(struct.__struct_encode_fields__, struct.__struct_fields__, strict=True)
    }


def _inside(data: Any, kind: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """What a list or a mapping of settings holds: its path, the value, and the type that it is to be of."""
    for option in _options(kind):
        arguments = typing.get_args(option)
        if typing.get_origin(option) is list and isinstance(data, list):
            yield from ((f"{path.removesuffix('.')}[{i}].", value, arguments[0]) for i, value in enumerate(data))
        if typing.get_origin(option) is dict and isinstance(data, Mapping):
            yield from ((f"{path}{key}.", value, arguments[1]) for key, value in data.items())


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    """The Structs that a value of this type may become; several: a union told apart by its tag."""
    return [option for option in _options(kind) if isinstance(option, type) and issubclass(option, msgspec.Struct)]


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _hint(word: str, words: Iterable[str], path: str = "") -> str:
    near = nearest(word, words)
    return f"did you mean {path}{near}?" if near else f"valid here: {', '.join(words)}"


def _named(message: str, data: Any, kind: Any) -> str:
    """The mistake with its whole path: msgspec writes `[...]` for an entry of a mapping."""
    entry = _failing(data, kind, "") if "[...]" in message else None
    if entry is None:
        return _explain(message, data)
    path, message, value = entry
    told = _explain(message, value)
    return f"{path.removesuffix('.') if told.startswith(('=', ':')) else path}{told}"


def _failing(data: Any, kind: Any, path: str) -> tuple[str, str, Any] | None:
    """The first entry of a mapping that is not of its type: its path, msgspec's message, its value."""
    if len(options := _structs(kind)) == 1 and isinstance(data, Mapping):
        hints = _hints(options[0])
        below = (_failing(value, hints[key], f"{path}{key}.") for key, value in data.items() if key in hints)
        return next(filter(None, below), None)
    for inside, value, inner in _inside(data, kind, path):
        try:
            msgspec.convert(value, inner, dec_hook=_from_text)
        except msgspec.ValidationError as error:
            return _failing(value, inner, inside) or (inside, str(error), value)
    return None


def _explain(message: str, data: Any) -> str:
    """msgspec's message with the dotted key first and the value that was given."""
    reason, _, where = message.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    value = data
    for part in re.findall(r"[^.\[\]]+", path):
        value = (
            value[int(part)]
            if isinstance(value, list) and part.isdigit()
            else value.get(part)
            if isinstance(value, Mapping)
            else None
        )
    reason = reason.replace("`", "")
    missing = re.match(r"Object missing required field (\w+)", reason)
    if missing:
        key = f"{path}.{missing[1]}".lstrip(".")
        return f"{key} is missing: give it in the recipe, or as {key}=VALUE"
    shown = "" if isinstance(value, (Mapping, list)) else f"={value}"
    return f"{path}{shown}: {reason[0].lower()}{reason[1:]}"
