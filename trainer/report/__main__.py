"""`python -m trainer.report RUN_DIR [--png] [--markdown] [--wandb] [--json]`: what launch.py report starts."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

from durable import write_atomic
from settings import ConfigError
from trainer.exits import CONFIG, CRASHED, DONE
from trainer.report import files, wandb_run, words


def main(run_dir: Path, png: bool, markdown: bool, as_json: bool, wandb: bool = False) -> int:
    """0; or 1: it is written, and says that something is wrong with what the run told. Raises ConfigError."""
    html, report = files.write_html(run_dir)
    written: list[object] = [html]
    if markdown:
        write_atomic(html.with_suffix(".md"), files.as_markdown(report))
        written.append(html.with_suffix(".md"))
    if png:
        from trainer.report.png import write_png  # matplotlib takes half a second

        write_png(report, html.with_suffix(".png"))
        written.append(html.with_suffix(".png"))
    if wandb or wandb_run.wanted(report.run):
        written.append(wandb_run.write(report.run) or "W&B: no new step")
    if as_json:
        print(files.as_json(report))
    else:
        stands, where = words.standing(report.run), report.where
        print(f"{report.run.name}: {stands.word}, {words.progress(report.run)}; {stands.why}")
        print(f"goodput {where.goodput:.1%} of {words.span(where.allocated)} with nodes; {report.proof.verdict}")
        print(*written, sep="\n")
    return CRASHED if report.proof.ok is False else DONE


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m trainer.report")
    parser.add_argument("run_dir", type=Path)
    for form in ("png", "markdown", "wandb", "json"):
        parser.add_argument(f"--{form}", action="store_true")
    given = parser.parse_args()
    gc.disable()  # a short process with small objects for every line: they took a quarter of a long run's report
    try:
        code = main(given.run_dir, given.png, given.markdown, given.json, given.wandb)
    except (ConfigError, OSError) as error:
        print(f"outlast: {error}", file=sys.stderr)
        code = CONFIG
    sys.exit(code)
