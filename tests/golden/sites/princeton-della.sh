#!/bin/bash
#SBATCH --job-name=sft
#SBATCH --nodes=2
#SBATCH --ntasks=4
#SBATCH --ntasks-per-node=2
#SBATCH --gres=gpu:2
#SBATCH --account=p1234
#SBATCH --constraint=gpu80
#SBATCH --chdir=/home/me
#SBATCH --output=/runs/sft/logs/job-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

[ -O /runs/sft/code ] || { echo 'outlast: this run'"'"'s code is not yours: start a run of your own from its checkpoint: launch.py --fork RUN' >&2; exit 78; }

export PYTHONPATH=/runs/sft/code"${PYTHONPATH:+:$PYTHONPATH}"
exec /env/bin/python -P -m slurm.supervisor /runs/sft "$@"
