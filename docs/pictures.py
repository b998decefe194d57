"""`python -m docs.pictures`: what a user sees, from real runs on the pocket cluster, into docs/pictures/. Ten minutes.

Terminals become SVG, pages PNG by a headless Chromium.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from durable import read_lines
from envs.browser import Browser, browser
from envs.demo import preempt, wait_for
from envs.pocket import Pocket, up
from slurm.rundir import RunDir
from trainer.report.files import write_html

ROOT = Path(__file__).parent.parent
PICTURES = Path(__file__).parent / "pictures"
DEMO = str(ROOT / "recipes" / "demo.yaml")
COLUMNS = 112
VIEWS = (("report", 1280, "light"), ("report-dark", 1280, "dark"), ("report-phone", 390, "light"))
"""Of the report: width in pixels, colour scheme."""
_NO_FONTS = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""rich's own asks a server for them."""
PROGRAM = """
import os, time
if os.environ["RANK"] == "2":
    rows = open("/scratch/corpus/shard-0002.parquet", "rb")
time.sleep(60)
"""


def main() -> int:
    PICTURES.mkdir(exist_ok=True)
    pocket = up("pictures", nodes=4, gpus=4)
    place = Path(tempfile.mkdtemp(prefix="outlast-"))
    try:
        desk = Desk(pocket, place)
        sft = life(desk)
        failure(desk)
        desk.picture("logs", "logs", "broken")
        queue(desk)
        desk.picture("status", "status")
        desk.picture("status-run", "status", "sft")
        for job in pocket.jobs():
            pocket.ask("scancel", job)
        progress(desk)
        pages(sft)
    finally:
        pocket.down()
        shutil.rmtree(place, ignore_errors=True)
    print(f"{PICTURES.relative_to(ROOT)}: {', '.join(sorted(path.name for path in PICTURES.iterdir()))}")
    return 0


class Desk:
    """A terminal, and a folder of runs."""

    def __init__(self, pocket: Pocket, place: Path) -> None:
        self.pocket, self.place = pocket, place
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OUTLAST_")}
        self.environment = {**plain, **pocket.env(), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}

    def run(self, name: str) -> RunDir:
        return RunDir(self.place / "runs" / name)

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "launch.py"), *words, "--runs-dir", "runs"]

    def launch(self, name: str, flags: str, *words: str, command: Sequence[str] = ()) -> RunDir:
        argv = [*self.argv("--name", name, *flags.split(), *words), *(["--", *command] if command else [])]
        subprocess.run(argv, cwd=self.place, env=self.environment, check=True, timeout=120)
        return self.run(name)

    def see(self, *words: str, until: Callable[[], bool] = lambda: False) -> str:
        """What a terminal shows of `launch.py WORDS` at its end, or as soon as `until` says; it is interrupted then."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        process = subprocess.Popen(
            self.argv(*words),
            cwd=self.place,
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        told, seen = b"", b""
        with suppress(OSError):  # EIO: the last one has closed it
            while piece := os.read(ours, 1 << 16):
                told += piece
                if not seen and until():
                    seen = told
                    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        os.close(ours)
        process.wait()
        return screen((seen or told).decode(errors="replace"))

    def picture(self, name: str, *words: str) -> None:
        draw(name, f"$ launch.py {' '.join(words)}", self.see(*words))


def screen(told: str) -> str:
    """What stands there after all: a line that was rewritten stands as it was last."""
    lines = told.replace("\r\n", "\n").split("\n")
    return "\n".join(line.split("\r\033[K")[-1] for line in lines).strip("\n")


def draw(name: str, title: str, text: str) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text))
    svg = console.export_svg(title=title, code_format=_NO_FONTS, unique_id=name)
    (PICTURES / f"{name}.svg").write_text(svg)


def steps(run: RunDir, attempt: int) -> int:
    lines = read_lines(run.events)
    return sum(line.get("event") == "step" and line["epoch"] == attempt for line in lines)


# --- the runs ---------------------------------------------------------------------------------------------


def life(desk: Desk) -> RunDir:
    """The demo's training: cut by its time limit, preempted, done."""
    run = desk.launch("sft", "--nodes 2 --gpus 2 -p preempt -t 00:01:00", DEMO)
    wait_for(lambda: any(steps(run, attempt) > 9 for attempt in range(2, run.newest_epoch() + 1)), "the next attempt")
    preempt(desk.pocket)
    wait_for(lambda: run.over, "the run's end")
    return run


def failure(desk: Desk) -> None:
    """A command of which one rank of four does not find its file."""
    command = [sys.executable, "-S", "-c", PROGRAM]
    run = desk.launch("broken", "--nodes 2 --gpus 2 --max-attempts 1", command=command)
    wait_for(lambda: run.over, "the failure")


def queue(desk: Desk) -> None:
    """One run trains, one waits for more nodes than are free."""
    run = desk.launch("cpt", "--nodes 2 --gpus 2 -t 00:30:00", DEMO, "train.epochs=20")
    wait_for(lambda: steps(run, 1) > 30, "steps")
    desk.launch("large", "--nodes 4 --gpus 4 -t 00:30:00", DEMO)
    wait_for(lambda: "(None)" not in desk.see("status", "large"), "the queue's word")
    time.sleep(35)  # Slurm's word on why it waits changes from Priority to Resources with its next look


def progress(desk: Desk) -> None:
    """In the foreground, without a scheduler."""
    words = ["--cluster", "local", "--gpus", "2", "--name", "here", DEMO]
    shown = desk.see(*words, until=lambda: steps(desk.run("here"), 1) > 60)
    draw("progress", "$ launch.py --cluster local --gpus 2 recipe.yaml", shown)


# --- pages ------------------------------------------------------------------------------------------------


def pages(run: RunDir) -> None:
    page, _ = write_html(run.path)
    with browser() as chromium:
        for name, width, scheme in VIEWS:
            chromium.open(page.as_uri(), width, scheme)
            chromium.picture(PICTURES / f"{name}.png", 1500)
        with tensorboard(run.path / "tensorboard") as address:
            chromium.open(f"{address}?darkMode=false&smoothing=0#timeseries", 1280, height=1290)
            wait_for(lambda: chromium.value(_CHARTS), "TensorBoard's charts")
            chromium.value("document.querySelector('.settings-button').click()")  # they take a third of the page
            still(chromium, PICTURES / "tensorboard.png", 1290)


_CHARTS = """(() => {
    const charts = [...document.querySelectorAll('line-chart')];
    return charts.length > 2 && charts.every(chart => chart.innerText.trim());
})()"""
"""Of cards that are in sight, which alone are drawn."""


def still(chromium: Browser, target: Path, height: int) -> None:
    """A picture of a page that draws itself bit by bit: when it is the same twice."""
    before = b""
    while True:
        chromium.picture(target, height)
        if target.read_bytes() == before:
            return
        before = target.read_bytes()
        time.sleep(2)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Its address."""
    argv = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--host=127.0.0.1", "--port=0"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = (re.search(r"http://\S+", line) for line in process.stderr)
        try:
            yield next(match[0] for match in told if match)
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
