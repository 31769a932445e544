#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS]; GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS as variables.
# The interpreter is PYTHON, by default the python of the active environment.
set -euo pipefail
partition=$1 job_name=$2 config=$3
shift 3
gpus=${GPUS:-8} gpus_per_node=${GPUS_PER_NODE:-8}
# shellcheck disable=SC2086
srun --partition="$partition" --job-name="$job_name" --gres="gpu:$gpus_per_node" --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
