#!/bin/bash
#SBATCH --job-name=sft
#SBATCH --nodes=2
#SBATCH --ntasks=8
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --partition=gpu
#SBATCH --account=p1234
#SBATCH --constraint=GPU_MEM:80GB
#SBATCH --chdir=/home/me
#SBATCH --output=/runs/sft/logs/job-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

[ -O /runs/sft/code ] || { echo 'outlast: this run'"'"'s code is not yours: start a run of your own from its checkpoint: launch.py --fork RUN' >&2; exit 78; }

export PYTHONPATH=/runs/sft/code"${PYTHONPATH:+:$PYTHONPATH}"
exec /env/bin/python -P -m slurm.supervisor /runs/sft "$@"
