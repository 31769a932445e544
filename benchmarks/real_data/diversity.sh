#!/usr/bin/env bash
# Pretraining with and without GRN, and both diversity curves:  benchmarks/real_data/diversity.sh PICTURES
set -euo pipefail
pictures=${1:?usage: benchmarks/real_data/diversity.sh PICTURES}
python=${PYTHON:-.venv/bin/python}
out=work_dirs/real_data/diversity
export OMP_NUM_THREADS=1
for norm in with-grn without-grn; do
    "$python" tools/train.py benchmarks/real_data/diversity_$norm.py --work-dir $out/$norm \
        --cfg-options train_dataloader.dataset.data_root="$pictures" &
done
wait
