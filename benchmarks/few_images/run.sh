#!/usr/bin/env bash
# The recipes for few images on real ones, from pretraining on 700 images and from scratch:
#     benchmarks/few_images/run.sh DATA        PYTHON=/another/python
# DATA has in1k_sample/, tiny_coco/ and camvid/. About two hours on two cores.
set -euo pipefail
data=${1:?usage: benchmarks/few_images/run.sh DATA}
out=work_dirs/few_images
python=${PYTHON:-.venv/bin/python}
$python benchmarks/few_images/exports.py "$data" $out
$python tools/train.py configs/small/fcmae_convnextv2-a_small.py --work-dir $out/fcmae \
    --cfg-options model.backbone.init_cfg=None train_dataloader.dataset.data_root="$data/in1k_sample"
$python tools/prepare.py $out/photos/annotations/instances_default.json --out $out/detect
$python tools/prepare.py $out/labelled --task segment --out $out/segment
$python tools/prepare.py $out/crops --task classify --out $out/classify
pretrained=(model.backbone.init_cfg.checkpoint=$out/fcmae/epoch_100.pth model.backbone.frozen_stages=0)
scratch=(model.backbone.init_cfg=None model.backbone.frozen_stages=0 optim_wrapper.paramwise_cfg.decay_rate=1.0)
declare -A length=([segment]=train_cfg.max_iters=500)
for task in detect segment classify; do
    $python tools/train.py $out/$task/config.py --work-dir $out/${task}_pretrained --cfg-options "${pretrained[@]}" ${length[$task]:-}
    $python tools/train.py $out/$task/config.py --work-dir $out/${task}_scratch --cfg-options "${scratch[@]}" ${length[$task]:-}
done
# The images that no run has seen; the crops of val2017 are the validation images already
photos=$out/photos_held_out/annotations/instances_default.json
held_out_photos=(test_dataloader.dataset.data_root=$out/photos_held_out/ test_evaluator.ann_file=$photos
    test_dataloader.dataset.ann_file=annotations/instances_default.json
    test_dataloader.dataset.data_prefix.img=images/)
held_out_frames=(test_dataloader.dataset.data_root=$out/labelled_held_out
    test_dataloader.dataset.data_prefix.img_path=images test_dataloader.dataset.data_prefix.seg_map_path=labels)
for start in pretrained scratch; do
    $python tools/test.py $out/detect/config.py $out/detect_$start/iter_1500.pth \
        --work-dir $out/detect_${start}_held_out --show-dir $out/detect_${start}_shown \
        --cfg-options "${held_out_photos[@]}"
    $python tools/test.py $out/segment/config.py $out/segment_$start/iter_500.pth \
        --work-dir $out/segment_${start}_held_out --show-dir $out/segment_${start}_shown \
        --cfg-options "${held_out_frames[@]}"
done
