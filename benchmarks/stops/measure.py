"""What a stop leaves: three ranks get a SIGTERM at a random moment between their start and their end.

The moment is a share of the undisturbed run, so it falls into imports, model build, steps, evaluations and saves; it
comes to one rank or to all, sometimes twice. Who is still there 30 s later is killed, as by Slurm. The peer is
transformers' Trainer with enable_jit_checkpoint; both get the same moments and ranks, and steps of about 0.1 s. A
checkpoint is whole when every file that a save writes is there and can be read. A step is lost when a rank had
completed it and no whole checkpoint holds it. Where no step was done, to have left is all that is asked. Every tenth
run is resumed, and its final weights compared.

Where the peer loses: a rank that gets the signal before the Trainer stands dies, and the others wait for it beyond the
30 s. Each rank hears its own signal only and looks at it by itself 3 s later. One that hears it alone leaves a newer
folder with its own generator's state and nothing else, which a resume takes and refuses; of ranks that all hear it some
may save one step and some the next. And most save just before the optimizer's step, which is then made, and lost.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median

from benchmarks import peers
from benchmarks.processes import Unable
from benchmarks.rows import Row
from benchmarks.stops.rank import STEPS, WORLD
from benchmarks.stops.runs import ROOT, Contender, Outlast, Transformers, steps_done
from durable import write_atomic

WORK = Path(__file__).parent.parent / ".stops"
GRACE = 30.0  # seconds: Slurm's KillWait, where a site has not changed it
PATIENCE = 180.0  # seconds that an undisturbed run may take on a loaded machine
RESUMED = 10  # every so many stops
PEER = "transformers"


@dataclass(frozen=True)
class Stop:
    """What is done to a run: drawn from its number alone."""

    number: int
    moment: float
    """Of the first signal, as a share of the undisturbed run."""
    ranks: tuple[int, ...]
    again: float | None
    """Seconds from the first signal to the second."""


@dataclass(frozen=True)
class Outcome:
    left: bool
    """All ranks were gone before the grace was over."""
    seconds: float
    """From the first signal to the last rank's exit."""
    codes: list[int]
    steps: int
    """That some rank had completed."""
    saved: int | None
    """Step of the checkpoint that a resume would take; None: there is none."""
    whole: bool
    """All of that can be read; or there was nothing to save, and all left."""
    lost: int
    """Steps that were completed and are in no checkpoint that is whole."""
    phase: str
    """In which it was stopped, as far as the ranks tell."""
    identical: bool | None = None
    """The resumed run ended with the weights of the undisturbed one; None: it was not resumed."""

    @property
    def right(self) -> bool:
        return self.left and self.whole and not self.lost and self.identical is not False


Holds = Callable[[Outcome], bool | None]


def drawn(number: int) -> Stop:
    chance = random.Random(number)
    moment = chance.random()
    ranks = tuple(range(WORLD)) if chance.random() < 2 / 3 else (chance.randrange(WORLD),)
    return Stop(number, moment, ranks, chance.uniform(0.05, 2) if chance.random() < 0.25 else None)


def measure(quick: bool) -> list[Row]:
    """100 stops of each, or 20. A measurement that was cut goes on where it was, as long as the code is the same."""
    missing = peers.install()
    work = WORK / _fingerprint()
    contenders: list[Contender] = [Outlast(work / "inputs")]
    if PEER not in missing:
        contenders.append(Transformers())
    benches = [Bench(contender, work / contender.name) for contender in contenders]
    found: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    stops = [drawn(number) for number in range(20 if quick else 100)]
    for stop in stops:
        for bench in benches:
            found[bench.contender.name].append(bench.outcome(stop))
    ours = found["outlast"]
    rows = _rows(stops, ours, found.get(PEER), missing.get(PEER, ""), work)
    if all(outcome.right for outcome in ours):  # else what a wrong one has left tells why
        shutil.rmtree(work)
    return rows


def _fingerprint() -> str:
    """Of what the figures depend on: the code of both contenders' ranks, and the pins."""
    files = [*sorted((ROOT / "trainer").rglob("*.py")), ROOT / "settings.py", ROOT / "durable.py", peers.PINS]
    files += [Path(__file__).with_name(name) for name in ("rank.py", "runs.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Bench:
    """One contender's runs, each in a folder of its own, and their outcomes, kept from one measurement to the next."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self.contender = contender
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._seconds, self._weights = self._undisturbed()

    def outcome(self, stop: Stop) -> Outcome:
        file = self._folder / f"{stop.number:03d}.json"
        if not file.exists():
            outcome = self._measure(stop)
            write_atomic(file, json.dumps({"stop": asdict(stop), "outcome": asdict(outcome)}) + "\n")
        return Outcome(**json.loads(file.read_text())["outcome"])

    def _undisturbed(self) -> tuple[float, str]:
        """Its seconds and its weights: the quicker of two runs, the first of which warms the page cache."""
        file = self._folder / "undisturbed.json"
        if not file.exists():
            found = [self._whole(), self._whole()]
            if found[0][1] != found[1][1]:
                raise Unable(f"{self.contender.name}: two undisturbed runs end with different weights")
            write_atomic(file, json.dumps(min(found)))
        seconds, weights = json.loads(file.read_text())
        return seconds, weights

    def _whole(self) -> tuple[float, str]:
        folder = self._new("undisturbed")
        seconds = self._run(folder)
        weights = self.contender.weights(folder)
        if weights is None:
            raise Unable(f"{self.contender.name}: an undisturbed run did not end: see {folder}")
        return seconds, weights

    def _measure(self, stop: Stop) -> Outcome:
        """One stop, and the resume where it is due. What a stop that was right leaves is removed."""
        folder = self._new(f"{stop.number:03d}")
        while (stopped := self._stop(folder, stop)) is None:
            folder = self._new(folder.name)
        left, seconds, codes = stopped
        outcome = self._judge(folder, left, seconds, codes)
        if stop.number % RESUMED == 0:
            self._run(folder)
            identical = self.contender.weights(folder) == self._weights
            outcome = replace(outcome, identical=identical)
        if outcome.right:
            shutil.rmtree(folder)
        return outcome

    def _stop(self, folder: Path, stop: Stop) -> tuple[bool, float, list[int]] | None:
        """Whether all left within the grace, after how many seconds, with which codes; None: there was none to stop."""
        with self.contender.ranks(folder) as ranks:
            if ranks.wait(ranks.began + stop.moment * self._seconds) or not ranks.signal(stop.ranks):
                # The machine has become quicker: from now on this run, which was over first, is the measure.
                self._seconds = min(0.95 * self._seconds, time.monotonic() - ranks.began)
                return None
            signalled = time.monotonic()
            if stop.again is not None and not ranks.wait(signalled + stop.again):
                ranks.signal(stop.ranks)
            left = ranks.wait(signalled + GRACE)
        return left, time.monotonic() - signalled, ranks.codes()

    def _judge(self, folder: Path, left: bool, seconds: float, codes: list[int]) -> Outcome:
        steps = steps_done(folder)
        checkpoints = self.contender.checkpoints(folder)
        saved, whole = checkpoints[0] if checkpoints else (None, left and steps == 0)
        kept = next((step for step, can_be_read in checkpoints if can_be_read), 0)
        phase = self.contender.phase(folder)
        return Outcome(left, round(seconds, 3), codes, steps, saved, whole, steps - kept, phase)

    def _run(self, folder: Path) -> float:
        """From where it is to its end, or until it is given up; seconds."""
        with self.contender.ranks(folder) as ranks:
            ranks.wait(ranks.began + PATIENCE)
        return time.monotonic() - ranks.began

    def _new(self, name: str) -> Path:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.contender.write(folder)
        return folder


# --- the table ----------------------------------------------------------------------------------------------


def _rows(
    stops: Sequence[Stop], ours: list[Outcome], theirs: list[Outcome] | None, missing: str, work: Path
) -> list[Row]:
    wrong = [stop.number for stop, outcome in zip(stops, ours, strict=True) if not outcome.right]
    cause = f"stops {wrong} went wrong, their folders are in {work}" if wrong else missing

    def counted(name: str, holds: Holds, among: Sequence[int]) -> Row:
        count, peer = (None if found is None else sum(bool(holds(found[n])) for n in among) for found in (ours, theirs))
        return Row(name, f"of {len(among)}", count, PEER, peer)

    def asked(name: str, holds: Holds, among: Sequence[int]) -> Row:
        row = counted(name, holds, among)
        return replace(row, goal=f"all {len(among)}", met=row.outlast == len(among), cause=cause)

    def figure(name: str, unit: str, of: Callable[[list[Outcome]], float]) -> Row:
        return Row(name, unit, of(ours), PEER, of(theirs) if theirs else None)

    every = range(len(stops))
    resumed = [stop.number for stop in stops if stop.number % RESUMED == 0]
    to_one = [stop.number for stop in stops if len(stop.ranks) == 1]
    to_all = [stop.number for stop in stops if len(stop.ranks) > 1]
    phases = sorted({outcome.phase for outcome in ours} - {""})
    return [
        asked(f"all ranks left within {GRACE:.0f} s", lambda o: o.left, every),
        asked("the newest checkpoint is whole", lambda o: o.whole, every),
        asked("it holds the last completed step", lambda o: o.whole and not o.lost, every),
        asked("the resumed run's weights are bit-identical", lambda o: o.identical, resumed),
        asked("all of that, signal to one rank", lambda o: o.right, to_one),
        asked("all of that, signal to all ranks", lambda o: o.right, to_all),
        *(counted(f"wrong: {name}", holds, every) for name, holds in WRONG.items()),
        counted("the run was over first", lambda o: o.steps == STEPS and o.whole, every),
        figure("from the signal to the last exit, median", "s", lambda found: median(o.seconds for o in found)),
        figure("lost at a stop, mean", "steps", lambda found: mean(o.lost for o in found)),
        Row(f"phases that were hit: {', '.join(phases)}", "", len(phases)),
    ]


WRONG: dict[str, Holds] = {
    "killed before any step was done": lambda o: not o.left and not o.steps,
    "killed later": lambda o: not o.left and o.steps > 0,
    "left, the newest checkpoint is torn": lambda o: o.left and not o.whole,
    "left, it is whole, one step lost": lambda o: o.left and o.whole and o.lost == 1,
    "left, it is whole, more steps lost": lambda o: o.left and o.whole and o.lost > 1,
}
"""How a stop goes wrong; each is in one of these at most."""
