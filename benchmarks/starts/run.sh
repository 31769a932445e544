#!/usr/bin/env bash
# Does pretraining help on CamVid? Scratch, FCMAE on photographs, and FCMAE continued on CamVid's own frames, without
# labels, each on 5, 10, 25 and 100 % of the labelled frames with three seeds:
#     benchmarks/starts/run.sh DATA        PYTHON=/another/python
# DATA has in1k_sample/ and camvid/{images,annotations}/{train,val}. Stopped, it goes on where it was.
set -euo pipefail
data=${1:?usage: benchmarks/starts/run.sh DATA}
out=work_dirs/starts
python=${PYTHON:-.venv/bin/python}
small=(train_dataloader.dataset.pipeline.1.scale=128 train_dataloader.num_workers=1)
"$python" tools/train.py configs/small/fcmae_convnextv2-a_small.py --resume --seed 0 --work-dir $out/photographs \
    --cfg-options "${small[@]}" model.backbone.init_cfg=None train_dataloader.dataset.data_root="$data/in1k_sample"
"$python" tools/train.py configs/fcmae/fcmae_convnextv2-a_1xb64-100e_continue.py --resume --seed 0 \
    --work-dir $out/continued --cfg-options "${small[@]}" model.init_cfg.checkpoint=$out/photographs/epoch_100.pth \
    train_dataloader.dataset.data_root="$data/camvid/images/train" optim_wrapper.type=OptimWrapper \
    train_dataloader.batch_size=16 optim_wrapper.accumulative_counts=1 optim_wrapper.optimizer.lr=5e-4
roots=({train,val,test}_dataloader.dataset.data_root="$data/camvid")
"$python" tools/compare_starts.py benchmarks/starts/upernet_camvid.py --work-dir $out/camvid \
    --start scratch --start photographs=$out/photographs/epoch_100.pth --start continued=$out/continued/epoch_100.pth \
    --fractions 0.05 0.1 0.25 1 --seeds 3 -- --cfg-options "${roots[@]}"
