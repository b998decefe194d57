"""What a site's profile makes of a job: its account and memory, what it refuses, and what a user should hear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from settings import ConfigError, merge
from slurm.config import JobConfig
from slurm.script import options
from slurm.sites.profile import Profile
from slurm.sites.refusals import flag

STALE_DAYS = 180

# From this version on Slurm refuses the two options together (its change logs of 23.02, 23.11 and 26.05); (): each one
# does (22.05.8: tried).
PAIRS = (
    *(
        ((26, 5), other, "gres=gpu", "ask for GPUs by one of them")
        for other in ("gpus-per-node", "gpus-per-task", "gpus-per-socket", "gpus")
    ),
    ((), "cpus-per-gpu", "cpus-per-task", "take job.cpus_per_gpu=N alone"),
    ((23, 11), "tres-per-task=cpu", "cpus-per-task", "take job.cpus_per_gpu=N alone"),
    ((), "mem-per-cpu", "mem", "take one of them"),
    ((), "mem-per-gpu", "mem", "take one of them"),
    ((), "mem-per-gpu", "mem-per-cpu", "take one of them"),
    ((), "ntasks-per-gpu", "ntasks-per-node", "--gpus says how many ranks a node has"),
    ((23, 2), "oversubscribe", "exclusive", "take one of them"),
)
_WITHIN = {"gres=gpu": ("gres", "gpu"), "tres-per-task=cpu": ("tres-per-task", "cpu")}
"""What of an option's value makes it one of a pair."""
_FIELDS = {"time": "walltime", "cpus-per-task": "cpus_per_gpu", "gpus-per-task": "gpus_per_node"}
_FIELDS |= {"gres": "gpus_per_node", "gpus-per-node": "gpus_per_node"}


def fitted(data: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """A job's fields, with what the site wants beside what is said of it; `gpus_per_node` is known."""
    out, memory = dict(data), _memory(data, profile)
    theirs = {*data, *(data.get("sbatch") or ())}
    if memory and not {"mem", "mem-per-cpu", "mem-per-gpu"} & theirs:
        out["mem"] = memory
    out["network"] = merge(_network(profile), data.get("network", {}))
    account, suffix = data.get("account"), profile.account.suffix if profile.account else ""
    # One that bears another kind's suffix is what its user means.
    if account and suffix and not str(account).endswith(suffix) and not (suffix[0] == "@" and "@" in str(account)):
        out["account"] = f"{account}{suffix}"
    return out


def spoken(saved: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """A job's fields without what `fitted` has put there, so that another layout gets its own."""
    derived = {"mem": _memory(saved, profile), "network": _network(profile)}
    return {key: value for key, value in saved.items() if derived.get(key) is None or value != derived[key]}


def _network(profile: Profile) -> dict[str, Any]:
    return {"environment": profile.network.environment, "host_suffix": profile.network.host_suffix}


def _memory(data: Mapping[str, Any], profile: Profile) -> str | None:
    count, each = data["gpus_per_node"], profile.mem_per_gpu
    return f"{int(each[:-1]) * count}{each[-1]}" if each and isinstance(count, int) else None


def check(job: JobConfig, profile: Profile, version: tuple[int, ...] | None) -> None:
    """Raises ConfigError for what the site never takes, with its reason, and for what its Slurm does not. `version`:
    (22, 5) for 22.05; None: not known, it may be any."""
    _check_pairs(job, version)
    for key, cause in _given(job).items():
        if key in profile.never:
            raise ConfigError(f"{flag(cause, job)}: {profile.name} takes no --{key}: {profile.never[key]}")
    _check_limits(job, profile)
    by = [*job.srun_args, "--gpus-per-task"] if job.gpus_by == "gpus-per-task" else job.srun_args
    if job.launcher != "srun" and any(re.match("--gpus-per-task", word) for word in by):
        raise ConfigError(
            f"--launcher {job.launcher}: {profile.name} gives each task its GPU, and this launcher is one task a node: "
            "take --launcher srun"
        )


def _check_limits(job: JobConfig, profile: Profile) -> None:
    """Those of a partition that Slurm's own words do not tell, and a QOS's."""
    partition, qos = profile.partitions.get(job.partition or ""), profile.qos.get(job.qos or "")
    for limit, kind, name in ((partition, "partition", job.partition), (qos, "qos", job.qos)):
        if limit and limit.max_gpus and job.world_size > limit.max_gpus:
            raise ConfigError(
                f"{job.layout}: {kind} {name} of {profile.name} gives one job {limit.max_gpus} GPUs: take fewer, or "
                f"another --{kind}"
            )
    if qos and not qos.min_nodes <= job.nodes <= (qos.max_nodes or job.nodes):
        most = f" to {qos.max_nodes}" if qos.max_nodes else ""
        raise ConfigError(
            f"--nodes {job.nodes}: qos {job.qos} of {profile.name} gives one job {qos.min_nodes}{most or ' and more'} "
            f"nodes: take another --nodes, or another --qos"
        )


def _check_pairs(job: JobConfig, version: tuple[int, ...] | None) -> None:
    given = _given(job)
    within = {name: given[key] for name, (key, part) in _WITHIN.items() if part in str(job.sbatch.get(key, ""))}
    asks = {**given, **within}
    for since, one, other, instead in PAIRS:
        if one in asks and other in asks and (version is None or version >= since):
            named = f" from {'.'.join(f'{part:02d}' for part in since)} on" if since else ""
            raise ConfigError(f"{flag(asks[one], job)}: Slurm refuses it together with --{other}{named}: {instead}")


def _given(job: JobConfig) -> dict[str, str]:
    """The long options that a job's script has, each with the field that brings it about."""
    ours = {key: _FIELDS.get(key, key.replace("-", "_")) for key, _ in options(job, Path(), Path())}
    return {**ours, **{key: f"sbatch.{key}" for key, value in job.sbatch.items() if value is not False}}


def notes(job: JobConfig, profile: Profile, today: date) -> list[str]:
    """What a user should know of this job at this site."""
    found = []
    if profile.checked and (days := (today - profile.checked).days) > STALE_DAYS:
        found.append(
            f"the profile {profile.name} was checked {days} days ago, on {profile.checked}: compare it with the site's "
            "documentation"
        )
    if profile.account and profile.account.required and not job.account:
        found.append(
            f"no account is given, and {profile.name} wants one ({profile.account.form}): -A, or SBATCH_ACCOUNT"
        )
    if job.purge_days:
        found.append(
            f"the site removes what nobody reads for {job.purge_days} days, also checkpoints of a run that waits"
        )
    full = profile.gpus_per_node
    if profile.whole_nodes and full and job.gpus_per_node < full:
        found.append(
            f"{profile.name} gives nodes whole, and {full - job.gpus_per_node} of {full} GPUs a node would idle: take "
            f"--gpus {full}"
        )
    return found
