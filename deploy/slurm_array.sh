#!/bin/bash
# One build for each strategy, on a node of its own. They share the journal; the first one buys the
# calibration, and the others wait for it, since builds at the same time would each buy their own:
#
#     first=$(sbatch --parsable --array=0 deploy/slurm_array.sh recipe.yaml)
#     sbatch --dependency="afterok:$first" --array=1-3 deploy/slurm_array.sh recipe.yaml
#SBATCH --job-name=persyn-strategies
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
set -euo pipefail

strategies=(persyn best-single random strong)
export PERSYN_JOURNAL="${PERSYN_JOURNAL:-$SLURM_SUBMIT_DIR/journal}"

.venv/bin/persyn build "$@" --strategy "${strategies[$SLURM_ARRAY_TASK_ID]}"
