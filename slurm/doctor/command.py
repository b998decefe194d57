"""`launch.py doctor`: do this site, this environment and this recipe fit together?"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import ConfigError
from slurm import submission
from slurm.doctor import draft, finding
from slurm.doctor.case import Case, examine, refused
from slurm.doctor.finding import Finding, exit_code
from slurm.doctor.job import examine_nodes
from slurm.doctor.nodes import NODES
from slurm.doctor.scheduler import JOB, LAST, SITE, rules
from slurm.doctor.software import SOFTWARE
from slurm.doctor.storage import FOLDERS
from slurm.errors import CommandFailed
from slurm.sites import cluster as clusters
from slurm.sites.cluster import Cluster
from slurm.submission import Layers


@dataclass(frozen=True)
class Told:
    """What the command line says."""

    tree: dict[str, Any]
    """The recipe's, with its `name`; a name alone where there is no recipe."""
    layers: Layers
    source: str


Checked = Callable[[dict[str, Any], Path, int, str], tuple[str, float | None]]
"""From a recipe's tree, its run folder, its ranks and its source to the resolved config, and the bytes of a checkpoint.
Raises ConfigError."""


def run(told: Callable[[Cluster], Told], checked: Checked, args: Namespace, nodes: bool) -> int:
    """The verb: 0 healthy, 1 warnings, 2 errors. `nodes`: a job looks at them."""
    if args.write_profile:
        print(draft.write(args.write_profile, clusters.find("auto")))
        return 0
    found: list[Finding] = []
    for one in look(told, checked, args, nodes):
        found.append(one)
        if not args.json:
            print(finding.text(one), flush=True)
    print(json.dumps(finding.as_json(found), indent=2) if args.json else f"\n{finding.verdict(found)}")
    return exit_code(found)


def look(told: Callable[[Cluster], Told], checked: Checked, args: Namespace, nodes: bool) -> Iterator[Finding]:
    try:
        cluster = clusters.find(args.cluster)
    except (ConfigError, CommandFailed) as failure:
        yield refused("slurm", failure) if isinstance(failure, ConfigError) else _silent(failure)
        return
    case, wrong = resolved(told, checked, args, cluster)
    yield from wrong
    found = list(wrong)
    for one in examine(case, _checks(case)):
        if one.what not in [other.what for other in found]:  # several checks may stumble over one mistake
            found.append(one)
            yield one
    broken = exit_code(found) == 2
    if not broken and cluster.live:
        last = list(examine(case, LAST))
        broken = exit_code(last) == 2
        yield from last
    if nodes and broken:
        yield finding.ok("nodes", "not looked at by a job: it would fail by the errors above")
    elif nodes:
        yield from look_at_nodes(case, args)


def _silent(failure: CommandFailed) -> Finding:
    mend = "wait, and ask the site; `scontrol ping`"
    return finding.error("slurm", str(failure), "nothing can be queued, and no running job asked for", mend)


def _checks(case: Case) -> list[Callable[[Case], Any]]:
    scheduler = [*SITE, *JOB] if case.cluster.live else [*SITE, rules]
    return [*scheduler, *FOLDERS, *SOFTWARE]


def resolved(
    told: Callable[[Cluster], Told], checked: Checked, args: Namespace, cluster: Cluster
) -> tuple[Case, list[Finding]]:
    """What there is to look at, and what is wrong with the rest of it."""
    runs, wrong = Path(args.runs_dir), []
    job, config, size = submission.merged_job([({"name": "doctor", "gpus_per_node": 1}, "doctor")], cluster), None, None
    try:
        said = told(cluster)
        job = submission.merged_job(said.layers, cluster)
        if len(said.tree) > 1:
            config, size = checked(said.tree, (runs / job.name).resolve(), job.world_size, said.source)
    except ConfigError as mistake:
        wrong.append(refused("recipe", mistake))
    else:
        name = said.source if config else "no recipe"
        wrong.append(finding.ok("recipe", f"{name}: {job.layout}"))
    return Case(cluster, job, runs, config, size), wrong


def look_at_nodes(case: Case, args: Namespace) -> Iterator[Finding]:
    """By a job. Its folder stays where it tells more than the findings."""
    try:
        exam = examine_nodes(case, args.here, args.prove_requeue, lambda line: print(line, file=sys.stderr, flush=True))
    except ConfigError as mistake:
        yield refused("job", mistake)
        return
    except CommandFailed as failure:
        yield finding.error("job", str(failure), "no look at the nodes was possible", "try again later")
        return
    found = [one for check in NODES for one in check(exam)]
    yield from found
    if exit_code(found) < 2:
        shutil.rmtree(exam.run.path, ignore_errors=True)
