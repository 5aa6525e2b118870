#!/bin/bash
# One build on several nodes: sbatch deploy/slurm_ray.sh recipe.yaml
# The checkout, its .venv and the journal are on a file system that all nodes see.
#SBATCH --job-name=persyn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
set -euo pipefail

export PERSYN_JOURNAL="${PERSYN_JOURNAL:-$SLURM_SUBMIT_DIR/journal}"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    .venv/bin/ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    .venv/bin/persyn build "$@" --runner ray
