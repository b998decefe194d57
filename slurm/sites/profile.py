"""What is known of a site, fact by fact, and on what evidence: envs/clusters/<name>.yaml, or a user's own file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from settings import ConfigError, Struct, convert, merge, nearest, read_yaml
from slurm.config import Count, JobConfig, Network
from slurm.walltime import Walltime

PROFILES = Path(__file__).parent.parent.parent / "envs" / "clusters"

Memory = Annotated[str, Meta(pattern=r"^\d+[MGT]$")]


class Evidence(str):
    """`o LUMI`, `e 2025-12-24 OT, WX: why`: grade, its own date if it has one, sources, the site's reason."""

    @classmethod
    def parse(cls, text: object) -> Evidence:
        if not re.fullmatch(r"[oemu]( \d{4}-\d\d-\d\d)? [^:]+(: .+)?", str(text)):
            raise ValueError("evidence is written GRADE [DATE] SOURCE[, SOURCE][: WHY], with a grade of o, e, m or u")
        return cls(text)

    @property
    def grade(self) -> str:
        """o: the site's documentation. e: scripts of people who run there. m: measured. u: not confirmed."""
        return self[0]

    @property
    def sources(self) -> list[str]:
        return re.sub(r"^. (\S+-\d\d-\d\d )?", "", self.partition(": ")[0]).split(", ")


class Limits(Struct, frozen=True):
    max_walltime: Walltime | None = None
    min_nodes: Count = 1
    max_nodes: Count | None = None
    """Most nodes of one job."""
    max_gpus: Count | None = None
    """Most GPUs of one job."""
    note: str = ""


class SitePartition(Limits, frozen=True):
    gpus_per_node: Count | None = None
    """Where it is another number than the profile's."""


class Account(Struct, frozen=True):
    form: str
    """How one is written, in words."""
    required: bool = False
    suffix: str = ""
    """What the site wants behind the project's name, and a user may leave out."""


class SiteNetwork(Network, frozen=True):
    note: str = ""


class Scratch(Struct, frozen=True):
    path: str
    """As a user of the site writes it: no user's own path."""
    purge_days: Count | None = None


class Billing(Struct, frozen=True):
    """What the site counts an allocation in."""

    unit: str
    per_gpu_hour: Annotated[float, Meta(gt=0)] | None = None
    per_node_hour: Annotated[float, Meta(gt=0)] | None = None
    note: str = ""

    def counted(self, gpu_hours: float, node_hours: float) -> str | None:
        """So many units; None: what one is was not told."""
        if self.per_node_hour is not None:
            return f"{node_hours * self.per_node_hour:,.4g} {self.unit}"
        return f"{gpu_hours * self.per_gpu_hour:,.4g} {self.unit}" if self.per_gpu_hour is not None else None


class Internet(Struct, frozen=True):
    login: bool | None = None
    compute: bool | None = None


class Profile(Struct, frozen=True):
    """Where to run: what a cluster needs to be told."""

    name: str
    description: str = ""
    like: str | None = None
    """A profile of ours that this one is laid on."""
    checked: date | None = None
    """The day on which its facts were last compared with their sources."""
    sources: dict[str, str] = {}
    """Where the facts are from, by the short names that `evidence` uses."""
    evidence: dict[str, Evidence] = {}
    """By dotted key (`partitions.gpu`, `never.mem`); that of a section holds for all of it that has none of its own."""
    cluster_name: str | None = None
    """ClusterName of its slurm.conf, as a pattern (`pocket*`): by this `--cluster auto` knows the site."""
    detect: dict[str, str] = {}
    """Variables of its shells, as patterns, by which it is known where no ClusterName is."""
    gpus_per_node: Count | None = None
    """GPUs of a full node: what is asked for when --gpus is omitted."""
    gpu: str | None = None
    """What they are, as `launch.py plan --gpus-of` calls it (a100-80): what cannot fit is refused then."""
    gpu_model: str = ""
    architecture: Literal["x86_64", "aarch64", "unknown"] = "unknown"
    whole_nodes: bool = False
    """A job gets, and pays, nodes whole."""
    cpus_per_node: Count | None = None
    mem_per_gpu: Memory | None = None
    """What is asked for with each GPU where no memory is named."""
    max_nodes: Count | None = None
    max_walltime: Walltime | None = None
    partitions: dict[str, SitePartition] = {}
    qos: dict[str, Limits] = {}
    account: Account | None = None
    never: dict[str, str] = {}
    """sbatch's long options that the site does not take, each with its reason."""
    network: SiteNetwork = SiteNetwork()
    scratch: Scratch | None = None
    data_cache: str | None = None
    """Folder of prepared data for recipes that name none, shared by all who run here; the shell's $VARIABLES count."""
    internet: Internet = Internet()
    billing: Billing | None = None
    job: dict[str, Any] = {}
    """Defaults of the job config on this cluster: what the site wants to be asked."""

    @property
    def gpus_are_asked(self) -> bool:
        return bool(self.job.get("gpus_by") != "none")


def own_folder() -> Path:
    """Of the user's own profiles."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "outlast" / "clusters"


def folders() -> list[Path]:
    """Where a name is looked for: the user's own profiles come before ours."""
    own = own_folder()
    return [own, PROFILES] if os.access(own, os.R_OK | os.X_OK) else [PROFILES]


def known() -> list[str]:
    return list(dict.fromkeys(path.stem for folder in folders() for path in sorted(folder.glob("*.yaml"))))


def recognizable() -> list[str]:
    """Of `known`, those that may say by what their cluster is known: all need not be read for each command."""
    paths = [path for folder in folders() for path in sorted(folder.glob("*.yaml"))]
    told = re.compile(r"^(cluster_name|detect|like):", re.MULTILINE)
    return list(dict.fromkeys(p.stem for p in paths if told.search(p.read_text(encoding="utf-8", errors="replace"))))


def is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def read_profile(name: str) -> Profile:
    """By name or by path; what is not confirmed is left out of it. Raises ConfigError."""
    paths = [Path(name)] if is_path(name) else [folder / f"{name}.yaml" for folder in folders()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        near = nearest(name, known())
        hint = f"did you mean {near}?" if near else f"known: {', '.join(known())}, or the path of a profile"
        raise ConfigError(f"--cluster {name}: there is no such profile: {hint}")
    return _typed(_tree(path), path)


def _tree(path: Path) -> dict[str, Any]:
    data = {"name": path.stem, **read_yaml(path)}
    if not (like := data.get("like")):
        return data
    ours = PROFILES / f"{like}.yaml"
    if not ours.is_file():
        near = nearest(str(like), known())
        raise ConfigError(f"{path}: like={like}: there is no such profile{f': did you mean {near}?' if near else ''}")
    return merge(read_yaml(ours), data)


def _typed(data: dict[str, Any], path: Path) -> Profile:
    profile = convert(data, Profile, str(path))
    convert({"name": "x", **profile.job}, JobConfig, f"{path}: job")
    for key, evidence in profile.evidence.items():
        _check_evidence(data, key, evidence, path)
    unsure = [key for key, evidence in profile.evidence.items() if evidence.grade == "u"]
    for key in unsure:
        data = _without(data, key.split("."))
    return convert(data, Profile, str(path)) if unsure else profile


def _check_evidence(data: Mapping[str, Any], key: str, evidence: Evidence, path: Path) -> None:
    keys = [*facts(data)]
    if not any(fact == key or fact.startswith(f"{key}.") for fact in keys):
        near = nearest(key, keys)
        raise ConfigError(f"{path}: evidence.{key}: there is no such fact{f': did you mean {near}?' if near else ''}")
    for source in evidence.sources:
        if source not in data.get("sources", {}):
            near = nearest(source, data.get("sources", {}))
            hint = f"did you mean {near}?" if near else "say under sources what it is"
            raise ConfigError(f"{path}: evidence.{key}={evidence}: unknown source {source}: {hint}")


_ABOUT = ("name", "description", "like", "checked", "sources", "evidence")


def facts(data: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys of what a profile says of its site."""
    for key, value in data.items():
        if above or key not in _ABOUT:
            yield from facts(value, f"{above}{key}.") if isinstance(value, Mapping) and value else [f"{above}{key}"]


def _without(tree: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    first, *rest = keys
    kept = {key: value for key, value in tree.items() if key != first}
    return {**kept, first: _without(tree[first], rest)} if rest and first in tree else kept
