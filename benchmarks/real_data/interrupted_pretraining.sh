#!/usr/bin/env bash
# Trains FCMAE for 50 epochs, killed once and resumed:  benchmarks/real_data/interrupted_pretraining.sh IMAGES
set -euo pipefail
images=${1:?usage: benchmarks/real_data/interrupted_pretraining.sh IMAGES}
config=benchmarks/real_data/fcmae_50-epochs_in1k-sample.py
out=work_dirs/real_data/fcmae_50-epochs
python=${PYTHON:-.venv/bin/python}
train=("$python" tools/train.py $config --work-dir $out --cfg-options train_dataloader.dataset.data_root="$images")
"${train[@]}" &
until [ -f $out/iter_1000.pth ]; do
    kill -0 $!  # ends the script if training ended
    sleep 1
done
sleep 20  # into the iterations after the checkpoint
kill -KILL $!
wait $! || echo "killed: status $?"
"${train[@]}" --resume
"$python" tools/reconstruct.py $config $out/iter_2150.pth "$images" --out $out/reconstruction.png
