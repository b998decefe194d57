"""What may be on the disk after the host has died in the middle of a save, by what POSIX promises.

Of a file's bytes those are certain that an fsync of the file has followed; what was written since may be there, or not, in
part, or as zeros. Of a folder's names those are certain that an fsync of the folder has followed; each change since is
there or not, whatever became of the others. What was done is read from strace's log of the save.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress, product
from pathlib import Path, PurePath
from typing import Any

TRACED = ("openat", "write", "fallocate", "ftruncate", "fsync", "mkdir", "rename", "unlink", "unlinkat", "rmdir")
OPTIONS = ("-f", "-ttt", "-xx", "-s", "100000000", "-e", f"trace={','.join(TRACED)},sendto")
HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")

State = dict[PurePath, bytes | None]
"""What lies below the run's folder; a folder: None."""


@dataclass(frozen=True)
class Operation:
    name: str
    path: PurePath
    target: PurePath = PurePath()
    data: bytes = b""


SAVED = Operation("saved", PurePath())
"""A rank said that its save has succeeded."""


def operations(logs: Iterable[list[str]], run_dir: Path) -> list[Operation]:
    """What the ranks did in the run's folder, in the order in which they began with it."""
    calls = sorted(call for lines in logs for call in _whole(lines))
    return [found for _, call in calls if (found := _operation(call, run_dir)) is not None]


def _whole(lines: list[str]) -> Iterator[tuple[float, str]]:
    """When each call began, and its text; strace tears one in two where another thread's came between."""
    torn: dict[str, tuple[float, str]] = {}
    for line in lines:
        thread, time, text = line.split(maxsplit=2)
        if text.endswith("<unfinished ...>"):
            torn[thread] = float(time), text.removesuffix("<unfinished ...>")
        elif match := re.match(r"<\.\.\. \w+ resumed>", text):
            began, first = torn.pop(thread)
            yield began, first + text[match.end() :]
        else:
            yield float(time), text


def _operation(call: str, run_dir: Path) -> Operation | None:
    name = call.partition("(")[0]
    words = [bytes.fromhex(text.replace("\\x", "")) for text in HEX.findall(call)]
    if name == "sendto" and b'"saved"' in words[-1]:
        return SAVED
    if name not in TRACED or " = -1 E" in call or name == "openat" and "O_CREAT" not in call:
        return None
    assert name != "ftruncate", call  # no model of it here
    paths = [PurePath(word.decode(errors="replace")) for word in words]
    if name == "unlinkat":
        return _below(run_dir, Operation("unlink", paths[0] / paths[1]))
    if name == "rename":
        return _below(run_dir, Operation(name, paths[0], paths[1]))
    if name == "write":
        return _below(run_dir, Operation(name, paths[0], data=words[1]))
    if name == "fallocate":
        size = int(call.rpartition(")")[0].rpartition(",")[2])
        return _below(run_dir, Operation(name, paths[0], data=bytes(size)))
    names = {"openat": "create", "rmdir": "unlink"}
    return _below(run_dir, Operation(names.get(name, name), paths[-1]))


def _below(run_dir: Path, found: Operation) -> Operation | None:
    if not found.path.is_relative_to(run_dir):
        return None
    target = found.target.relative_to(run_dir) if found.name == "rename" else found.target
    return Operation(found.name, found.path.relative_to(run_dir), target, found.data)


# --- the disk -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    durable: bytes = b""
    now: bytes = b""
    at: int = 0
    """Where the next write goes."""

    def write(self, data: bytes) -> None:
        self.now = self.now[: self.at] + data + self.now[self.at + len(data) :]
        self.at += len(data)

    def reserve(self, zeros: bytes) -> None:
        self.now += zeros[len(self.now) :]

    def sync(self) -> None:
        self.durable = self.now

    def contents(self) -> list[bytes]:
        old, new = self.durable, self.now
        if old == new:
            return [new]
        zeros, middle = bytes(len(new)), (len(old) + len(new)) // 2
        return [old, new, old + zeros[len(old) :], new[:middle], old + zeros[len(old) : middle] + new[middle:]]


@dataclass(eq=False)
class Folder:
    durable: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)
    """Since the last sync; each is there as a whole or not at all. None: the name is gone."""

    @property
    def now(self) -> dict[str, File | Folder]:
        return self._with(self.changes)

    def sync(self) -> None:
        self.durable, self.changes = self.now, []

    def contents(self) -> Iterator[dict[str, Any]]:
        for there in product((False, True), repeat=len(self.changes)):
            names = self._with(compress(self.changes, there))
            for found in product(*(list(node.contents()) for node in names.values())):
                yield dict(zip(names, found, strict=True))

    def _with(self, changes: Iterable[dict[str, File | Folder | None]]) -> dict[str, File | Folder]:
        names = {name: node for change in (self.durable, *changes) for name, node in change.items()}
        return {name: node for name, node in names.items() if node is not None}


def scan(path: Path) -> File | Folder:
    """What lies there, all of it durable."""
    if path.is_file():
        return File(path.read_bytes(), path.read_bytes())
    return Folder({child.name: scan(child) for child in path.iterdir()})


def states(root: Folder, done: Iterable[Operation]) -> Iterator[tuple[bool, State]]:
    """Each state that a crash may leave before, between and after these operations, once; and whether it was said
    before the crash that the save had succeeded."""
    saved, seen = False, set[int]()
    for operation in (None, *done):
        if operation == SAVED:
            saved = True
        elif operation is not None:
            _do(root, operation)
        for content in root.contents():
            state = dict(_flat(content, PurePath()))
            if (key := hash((saved, frozenset(state.items())))) not in seen:
                seen.add(key)
                yield saved, state


def _do(root: Folder, operation: Operation) -> None:
    parent, name = _find(root, operation.path.parent), operation.path.name
    match operation.name:
        case "mkdir":
            parent.changes.append({name: Folder()})
        case "create":
            parent.changes.append({name: File()})
        case "unlink":
            parent.changes.append({name: None})
        case "rename":
            assert operation.target.parent == operation.path.parent  # one change, of one folder
            parent.changes.append({name: None, operation.target.name: parent.now[name]})
        case "write":
            parent.now[name].write(operation.data)
        case "fallocate":
            parent.now[name].reserve(operation.data)
        case "fsync":
            _find(root, operation.path).sync()


def _find(root: Any, path: PurePath) -> Any:
    for name in path.parts:
        root = root.now[name]
    return root


def _flat(content: dict[str, Any], path: PurePath) -> Iterator[tuple[PurePath, bytes | None]]:
    for name, inside in content.items():
        if isinstance(inside, bytes):
            yield path / name, inside
        else:
            yield path / name, None
            yield from _flat(inside, path / name)


def write(state: State, folder: Path) -> None:
    for path, content in state.items():  # a folder comes before what lies in it
        if content is None:
            (folder / path).mkdir(parents=True)
        else:
            (folder / path).write_bytes(content)
