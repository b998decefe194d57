"""What a Slurm says of itself, as `scontrol show config` shows it."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Site:
    """What a Slurm says of itself."""

    name: str
    version: tuple[int, ...]
    """(22, 5) for 22.05.8."""
    ages: bool
    """A waiting job gains priority, but only while nothing but the queue holds it: not behind a dependency."""
    largest_array: int
    """Jobs that an array may have."""
    enforces_limits: bool
    """A job that its partition never admits is refused; else it waits in the queue for ever."""
    accounts: bool
    """It has an accounting database."""
    requeues: bool = True
    """A job may be requeued that does not say so itself."""
    clock: float | None = None
    """Unix seconds by its controller's clock when it answered, in whole seconds."""


def parse(text: str) -> Site:
    """Output of `scontrol show config`."""
    facts = dict(re.findall(r"^(\w+)\s*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))
    version = re.search(r"^SLURM_VERSION\s*= (\d+)\.(\d+)", text, re.MULTILINE)
    return Site(
        name=facts["ClusterName"],
        version=tuple(map(int, version.groups())) if version else (),
        ages=facts.get("PriorityType") == "priority/multifactor"
        and facts.get("PriorityWeightAge", "0") not in ("0", "(null)")
        and "ACCRUE_ALWAYS" not in facts.get("PriorityFlags", ""),
        largest_array=int(facts.get("MaxArraySize", "1")) - 1,  # the index must stay below it
        enforces_limits=facts.get("EnforcePartLimits") != "NO",
        accounts=facts.get("AccountingStorageType", "").endswith("slurmdbd"),
        requeues=facts.get("JobRequeue") != "0",
        clock=unix(text.partition("\n")[0].rpartition(" ")[2]),
    )


def unix(text: str) -> float | None:
    """Slurm prints local time without a zone, or None, Unknown, N/A."""
    with suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None
