#!/bin/sh
# What README.md says under "By hand", typed by a script in a fresh clone: set-up, a run of two nodes, its time limit, and
# the next attempts up to the end.
#
#     sh docs/walk.sh [REPOSITORY] [local]
#
# `local`, and wherever no pocket cluster comes up: the same in local mode, which needs no Slurm and no root.
set -eu
from=${1:-$(cd "$(dirname "$0")/.." && pwd)}
where=${2:-pocket}
began=$(date +%s)
say() { echo "== after $(($(date +%s) - began)) s: $*"; }

place=$(mktemp -d "${TMPDIR:-/tmp}/walk-XXXXXX")
trap 'rm -rf "$place"' EXIT
trap 'exit 1' INT TERM  # a shell that a signal ends does not tidy up
git clone -q "$from" "$place/outlast"
cd "$place/outlast"
make setup
. .venv/bin/activate
say "set up"
if [ "$where" = pocket ] && python launch.py pocket up; then
    trap 'python launch.py pocket down; rm -rf "$place"' EXIT
    python launch.py --nodes 2 --gpus 2 --walltime 00:01:00 recipes/demo.yaml
    say "in the queue"
    while ! [ -e runs/demo/DONE ] && ! [ -e runs/demo/CANCELLED ]; do sleep 1; done
else
    python launch.py --cluster local --gpus 2 --walltime 00:01:00 recipes/demo.yaml
fi
say "over"
python launch.py status demo
[ -e runs/demo/DONE ]
grep -q '"cause": *"timeout"' runs/demo/attempts.jsonl
python -m trainer.audit runs/demo
say "cut by its time limit, and trained to its end"
