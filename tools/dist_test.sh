#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT NUM_GPUS [ARGUMENTS]; several nodes: set NNODES, NODE_RANK, MASTER_ADDR.
# The interpreter is PYTHON, by default the python of the active environment.
set -euo pipefail
positional=("$1" "$2"); num_gpus=$3; shift 3
"${PYTHON:-python}" -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --nproc_per_node="$num_gpus" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "${positional[@]}" --launcher pytorch "$@"
