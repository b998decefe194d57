#!/bin/bash
#SBATCH --job-name=sft
#SBATCH --nodes=4
#SBATCH --ntasks=16
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --partition=gpu
#SBATCH --account=p1234
#SBATCH --qos=long
#SBATCH --constraint=a100
#SBATCH --time=1-12:00:00
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=FAIL
#SBATCH --chdir=/home/me
#SBATCH --output=/runs/sft/logs/job-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --exclusive
#SBATCH --comment='two words'
#SBATCH --nice=5

[ -O /runs/sft/code ] || { echo 'outlast: this run'"'"'s code is not yours: start a run of your own from its checkpoint: launch.py --fork RUN' >&2; exit 78; }

set -e
module load cuda/12.4
set +e

export NCCL_DEBUG=WARN
export NOTE='it'"'"'s'
export PYTHONPATH=/runs/sft/code"${PYTHONPATH:+:$PYTHONPATH}"
exec /env/bin/python -P -m slurm.supervisor /runs/sft "$@"
