"""`python -m docs.reference`: docs/reference.md, every key and every flag, from the code that reads them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

import flags
from settings import LAYOUT, Struct
from slurm.config import JobConfig
from trainer import schema, shape, sources

PAGE = Path(__file__).parent / "reference.md"
HEAD = """\
# Every key and every flag

You will find here what a recipe may say, what its `job:` section may, and what the command line takes. It is made from
the code (`python -m docs.reference`), so it is complete. A key is written in the recipe, or typed behind it as
`key=value`.

A resume may change what is marked L; the rest makes the run what it is.
"""
SECTIONS: list[tuple[str, type[Struct]]] = [
    ("", schema.TrainConfig),
    ("model", shape.Model),
    ("model.rope, rope_type: linear", shape.Linear),
    ("model.rope, rope_type: dynamic", shape.Dynamic),
    ("model.rope, rope_type: yarn", shape.Yarn),
    ("model.rope, rope_type: llama3", shape.Llama3),
    ("model.rope, rope_type: longrope", shape.Longrope),
    ("data", sources.Data),
    ("data.train.NAME, data.evaluation.NAME", sources.Source),
    ("train", schema.Train),
    ("train.gradient_checkpointing", schema.EveryK),
    ("optim", schema.Optim),
    ("stages, each", schema.Stage),
    ("stages, optim of each", schema.Rate),
    *((f"engine, kind: {one.__struct_config__.tag}", one) for one in get_args(schema.EngineSettings)),
    ("lora", schema.Lora),
    ("forgetting", sources.Forgetting),
    ("evaluation", schema.Evaluation),
    ("checkpoint", schema.Checkpoint),
    ("watchdog", schema.Watchdog),
    ("job", JobConfig),
]


def texts(struct: type[Struct]) -> dict[str, str]:
    """What stands under each field, of the class and of those above it."""
    out: dict[str, str] = {}
    for cls in reversed(struct.__mro__):
        if not (issubclass(cls, Struct) and cls is not Struct):
            continue
        body = ast.parse(inspect.getsource(cls)).body[0].body  # type: ignore[attr-defined]
        for field, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                text = " ".join(str(below.value.value).split()) if said else ""  # type: ignore[union-attr]
                out[ast.unparse(field.target)] = text
    return out


def rows(struct: type[Struct]) -> Iterator[str]:
    said = texts(struct)
    for field in msgspec.structs.fields(struct):
        layout = LAYOUT.extra in [meta.extra for meta in _metas(field.type)]
        text = said.get(field.name, "").replace("|", "\\|")
        yield f"| `{field.encode_name}` | {_default(field)} | {'L' if layout else ''} | {text} |"


def _metas(kind: Any) -> list[Any]:
    found = [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    return found + [meta for part in get_args(kind) for meta in _metas(part)]


def _default(field: Any) -> str:
    if field.required:
        return "**needed**"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if value is None or isinstance(value, Struct):
        return ""
    shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return f"`{shown or (value if value != '' else repr(value))}`".replace("|", "\\|")


def page() -> str:
    out = [HEAD]
    for title, struct in SECTIONS:
        about = inspect.getdoc(struct) if struct.__doc__ else ""
        if title == "job":
            out += [
                "# The job",
                "",
                "Under `job:` in a recipe or a profile; typed as `job.key=value`. A resume may change all of it.",
                "",
            ]
        else:
            out += [f"## {title or 'The recipe'}", "", *([" ".join(str(about).split()), ""] if about else [])]
        if keys := list(rows(struct)):
            out += ["| key | default | | |", "|---|---|---|---|", *keys, ""]
    out += ["# The command line", "", "`launch.py [VERB] [FLAGS]`; flags stand before or after the verb.", ""]
    for name, verb in flags.VERBS.items():
        out += [f"## {name}", "", f"{verb.text}. For example `{verb.example}`.", "", "| flag | |", "|---|---|"]
        for flag in flags.JOB_FLAGS + flags.CALL_FLAGS:
            if name in flag.verbs:
                out.append(f"| `{' '.join(flag.names.split())}` | {flag.text} |".replace("|N", "\\|N"))
        out.append("")
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
