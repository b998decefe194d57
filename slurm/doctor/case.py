"""What the login node's checks look at, and how they are run."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from settings import ConfigError, parse_yaml
from slurm.config import JobConfig
from slurm.doctor.finding import Finding, error, warning
from slurm.errors import SlurmError
from slurm.sites.cluster import Cluster
from slurm.sites.partition import Partition


@dataclass(frozen=True)
class Case:
    cluster: Cluster
    job: JobConfig
    """As it would be submitted, before the site's limits are looked at."""
    runs: Path
    """Folder of the run folders."""
    config: str | None = None
    """The trainer's resolved config; None: no recipe was named."""
    checkpoint: float | None = None
    """Bytes of one of its checkpoints; None: not known."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    now: Callable[[], float] = time.time

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as a tree; empty without a recipe."""
        return dict(parse_yaml(self.config, "config.yaml")) if self.config else {}

    @cached_property
    def partitions(self) -> list[Partition]:
        """Those that the job may run in. Raises ConfigError."""
        return self.cluster.chosen(self.job.partition)


# How a line ends that says what to do.
_ADVICE = re.compile(
    r"--\w|(did you mean|take|choose|give|see|leave|make|remove|ask|install|the run goes on|there are)\b"
)
Check = Callable[[Case], Iterable[Finding]]


def examine(case: Case, checks: Iterable[Check]) -> Iterator[Finding]:
    """What each of them finds. A check that cannot look is a finding, and no end of the others."""
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            yield from check(case)
        except ConfigError as mistake:
            yield refused(name, mistake)
        except (SlurmError, OSError) as failure:
            yield warning(name, f"it could not be looked at: {failure}", "nothing is known of it", "look again later")


def refused(check: str, mistake: ConfigError) -> Finding:
    """A user's mistake in the words that submit has for it, which say what to change."""
    what, _, last = str(mistake).rpartition(": ")
    if not (what and _ADVICE.match(last)):
        what, last = str(mistake), "change what it names; launch.py --help shows every flag"
    return error(check, what, "submit refuses this before anything is queued", last)
