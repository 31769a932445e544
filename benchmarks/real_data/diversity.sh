#!/usr/bin/env bash
# Pretrains with and without GRN in parallel, and plots both diversity curves:  benchmarks/real_data/diversity.sh IMAGES
set -euo pipefail
images=${1:?usage: benchmarks/real_data/diversity.sh IMAGES}
here=benchmarks/real_data
out=work_dirs/real_data/diversity
python=${PYTHON:-.venv/bin/python}
pretrain() {
    OMP_NUM_THREADS=1 "$python" tools/train.py $here/diversity_$1.py --work-dir $out/$1 --resume \
        --cfg-options train_dataloader.dataset.data_root="$images"
}
pretrain with-grn & first=$!
pretrain without-grn
wait $first
models=()
for norm in with-grn without-grn; do
    models+=(--model "$norm, initialised" $here/diversity_$norm.py random)
    models+=(--model "$norm, pretrained" $here/diversity_$norm.py "$(cat $out/$norm/last_checkpoint)")
done
"$python" tools/analyze_features.py distance "$images" --size 160 --out $out/distance "${models[@]}"
for norm in with-grn without-grn; do
    "$python" tools/report.py $out/$norm --distance $out/distance/distance.csv
done
