#!/usr/bin/env bash
# Runs FCMAE, conversion, Mask R-CNN and UperNet on real images:  benchmarks/real_data/run.sh DATA
# DATA contains in1k_sample/, tiny_coco/ (COCO layout) and camvid/{images,annotations}/{train,val}.
set -euo pipefail
data=${1:?usage: benchmarks/real_data/run.sh DATA}
here=benchmarks/real_data
out=work_dirs/real_data
python=${PYTHON:-.venv/bin/python}
$python tools/train.py $here/fcmae_in1k-sample.py --work-dir $out/fcmae \
    --cfg-options train_dataloader.dataset.data_root="$data/in1k_sample"
$python tools/convert_checkpoint.py $out/fcmae/epoch_3.pth $out/backbone.pth --force
init=model.backbone.init_cfg.checkpoint=$out/backbone.pth
coco=(train_dataloader.dataset.data_root="$data/tiny_coco/" val_dataloader.dataset.data_root="$data/tiny_coco/"
      test_dataloader.dataset.data_root="$data/tiny_coco/"
      val_evaluator.ann_file="$data/tiny_coco/annotations/instances_val2017.json"
      test_evaluator.ann_file="$data/tiny_coco/annotations/instances_val2017.json")
$python tools/train.py $here/mask-rcnn_tiny-coco.py --work-dir $out/mask-rcnn --cfg-options $init "${coco[@]}"
$python tools/test.py $here/mask-rcnn_tiny-coco.py $out/mask-rcnn/iter_40.pth --work-dir $out/mask-rcnn_test \
    --cfg-options model.backbone.init_cfg=None "${coco[@]}"
camvid=(train_dataloader.dataset.data_root="$data/camvid" val_dataloader.dataset.data_root="$data/camvid"
        test_dataloader.dataset.data_root="$data/camvid")
$python tools/train.py $here/upernet_camvid.py --work-dir $out/upernet --cfg-options $init "${camvid[@]}"
$python tools/test.py $here/upernet_camvid.py $out/upernet/iter_60.pth --work-dir $out/upernet_test \
    --cfg-options model.backbone.init_cfg=None "${camvid[@]}"
