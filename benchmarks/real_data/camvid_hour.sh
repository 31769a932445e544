#!/usr/bin/env bash
# Trains UperNet-Atto on CamVid, from scratch or from a pretrained backbone:
#   benchmarks/real_data/camvid_hour.sh DATA NAME [BACKBONE]
# DATA contains camvid/{images,annotations}/{train,val}; NAME is the run's folder in work_dirs/real_data.
set -euo pipefail
data=${1:?usage: benchmarks/real_data/camvid_hour.sh DATA NAME [BACKBONE]}/camvid
name=${2:?usage: benchmarks/real_data/camvid_hour.sh DATA NAME [BACKBONE]}
init=model.backbone.init_cfg=None
if [ $# -gt 2 ]; then init=model.backbone.init_cfg.checkpoint=$3; fi
"${PYTHON:-.venv/bin/python}" tools/train.py benchmarks/real_data/upernet_camvid_hour.py \
    --work-dir "work_dirs/real_data/$name" --cfg-options "$init" train_dataloader.dataset.data_root="$data" \
    val_dataloader.dataset.data_root="$data" test_dataloader.dataset.data_root="$data"
