"""`python -m trainer.evaluate RUN_DIR [--data FILE] [--step N] ...` is what launch.py evaluate starts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from durable import as_open_as
from settings import ConfigError
from trainer import exits
from trainer.evaluate import spoken, table
from trainer.evaluate.evaluate import Evaluation, Wanted


def main(argv: list[str]) -> int:
    out = argparse.ArgumentParser(prog="python -m trainer.evaluate", description=__doc__, allow_abbrev=False)
    out.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    out.add_argument("--data", help="file of prompts with answers; default: the run's held-out ones")
    out.add_argument("--step", type=int, help="the checkpoint after this step; default: the newest")
    out.add_argument("--limit", type=int, help="the first so many rows")
    out.add_argument("--labels", default=spoken.LABELS, help="field of the JSON object in an answer's first line")
    out.add_argument("--mark", default=spoken.MARK, help="what the judged text stands behind")
    out.add_argument(
        "--new-tokens", type=int, help="of an answer, at most; default: the longest reference's and a quarter"
    )
    out.add_argument("--json", action="store_true")
    args = out.parse_args(argv)
    wanted = Wanted(args.data, args.step, args.limit, args.labels, args.mark, args.new_tokens)
    run_dir = args.run_dir.resolve()
    try:
        for name in ("limit", "new_tokens"):
            if (value := getattr(wanted, name)) is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: 1 at least")
        evaluation = Evaluation(run_dir, wanted)
        with as_open_as(run_dir):
            scores = evaluation.run(lambda text: print(text, file=sys.stderr, flush=True))
    except (ConfigError, OSError) as error:
        print(f"outlast: {error}", file=sys.stderr)
        return exits.CONFIG if isinstance(error, ConfigError) else exits.CRASHED
    except KeyboardInterrupt:
        print("outlast: cut short: what is answered stays, and the same command goes on", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps(scores, indent=2))
    else:
        table.show(scores, Console())
        print(f"{evaluation.folder.path}: answers.jsonl, scores.json")
    return exits.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
