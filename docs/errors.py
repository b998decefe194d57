"""`python -m docs.errors`: docs/errors.md, what launch.py and Slurm say and what to do, from the tables that say it."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from docs.markdown import table
from slurm.causes import known_errors, reasons
from slurm.causes.reasons import Reason

PAGE = Path(__file__).parent / "errors.md"
HEAD = """\
# What went wrong

You will find here every exit code, every cause of an attempt's end, the errors that are known, and Slurm's codes in
words: what each means and what to do. It is made from the tables that `status` and `logs` read (`python -m
docs.errors`), so they say the same.

## Exit codes

Of a rank, of `python -m trainer`, and of `launch.py`, where it has the same meaning:

| code | meaning | and then |
|---|---|---|
| 0 | done | the export stands |
| 1 | Slurm, a file system or our own code failed; of `report`, `drill` and `verify`: no proof | the line says what |
| 75 | saved at the step that all ranks agreed on | the next job goes on; in the foreground: `launch.py resume` |
| 76 | another attempt owns the run | nothing: it leaves the run alone |
| 77 | ended by the user's word, or by a limit that the user set | `launch.py resume` lifts it |
| 78 | a mistake in the configuration, mostly found before the queue; `plan`: it does not fit | the line says what |
| 79 | a node is no place for ranks: its preflight says why | the next job keeps away from it |
| 86 | the ranks hung: stacks of all in `logs/` | new ranks start |
| 93 | no progress: what ended an attempt has ended three in a row | mend it, then `launch.py resume` |
| 130 | Ctrl-C | |
| else | a crash | new ranks start in the same allocation |

`launch.py doctor` ends with 1 for warnings and 2 for errors.
"""


def page() -> str:
    parts = [
        HEAD,
        "## Why an attempt ended\n",
        table(("cause", "in words"), ((f"`{cause}`", text) for cause, text in reasons.CAUSES.items())),
        "## Errors that are known\n",
        "Searched in the last lines of the rank that failed first; of several the first counts.\n",
        table(("it means", "in its words", "what to change"), _errors()),
        "## Why a job waits\n",
        "And the codes of limits (`AssocGrpGRESMinutes`, `QOSMaxNodePerUserLimit` ...), which are taken apart.\n",
        table(("Slurm's code", "in words", "what to do"), _reasons(reasons.WAITING)),
        "## How a job ended that its supervisor could not write down\n",
        table(("Slurm's state", "in words", "what to do"), _reasons(reasons.ENDED)),
    ]
    return "\n".join(parts)


def _errors() -> Iterable[tuple[str, ...]]:
    for known in known_errors.TABLE:
        yield known.meaning, f"`{known.pattern.split('|')[0]}` ...", known.change
    for number, known in known_errors.SIGNALS.items():
        yield known.meaning, signal.Signals(number).name, known.change


def _reasons(table: Mapping[str, Reason]) -> Iterable[tuple[str, ...]]:
    for code, reason in table.items():
        yield f"`{code}`", reason.meaning, reason.do.format(run="RUN", job="JOB", log="runs/RUN/logs/job-JOB.log")


if __name__ == "__main__":
    PAGE.write_text(page())
