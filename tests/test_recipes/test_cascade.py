"""The Cascade Mask R-CNN recipe trains a step and is evaluated, narrow and on small images."""

import json
import math
from pathlib import Path

import pytest

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded

LEAF = (
    Path(__file__).parents[2]
    / 'configs'
    / 'cascade_mask_rcnn'
    / 'cascade-mask-rcnn_convnextv2-t_fpn_ms-crop-3x_coco.py'
)
NARROW = """
arch = dict(_delete_=True, depths=(1, 1, 1, 1), channels=(8, 8, 16, 16))
classes = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
narrow = dict(in_channels=16, conv_out_channels=16, fc_out_channels=16, num_classes=len(classes))
model = dict(
    backbone=dict(arch=arch, init_cfg=None),
    neck=dict(in_channels=[8, 8, 16, 16], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16), mask_roi_extractor=dict(out_channels=16),
        bbox_head=[{**head, **narrow} for head in _base_.bbox_head],
        mask_head=dict(in_channels=16, conv_out_channels=16, num_classes=len(classes))),
    test_cfg=dict(rcnn=dict(score_thr=0.)))
small = dict(type='Resize', scale=(64, 64), keep_ratio=True)
load, labels, flip, _, pack = _base_.train_pipeline
test_load, _, *test_rest = _base_.test_pipeline
plain = dict(num_workers=0, persistent_workers=False, batch_size=2)
own = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(**plain, dataset=dict(**own, pipeline=[load, labels, flip, small, pack]))
val_dataloader = dict(**plain, dataset=dict(**own, pipeline=[test_load, small, *test_rest]))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.mark.slow
def test_cascade_trains_and_is_evaluated(tmp_path):
    """An epoch of two iterations under bf16: losses of all stages are finite and positive, and box and mask AP are
    evaluated from the three stages together."""
    make_embedded(str(tmp_path / 'data'), EmbeddedSpec(unlabelled=1, train=4, val=2, size=64))
    config = tmp_path / 'cascade.py'
    config.write_text(f"_base_ = '{LEAF}'\ndata_root = '{tmp_path}/data/coco/'\n{NARROW}")
    run_tool(
        train,
        parse_train_args(
            [str(config), '--work-dir', str(tmp_path / 'run'), '--cfg-options', f'visualizer.name={tmp_path}']
        ),
    )  # mmengine keeps visualizers by name
    lines = next((tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text().splitlines()
    logged = {key: value for line in lines for key, value in json.loads(line).items()}
    for stage in range(3):
        assert all(math.isfinite(logged[f's{stage}.{loss}']) for loss in ('loss_cls', 'loss_bbox', 'loss_mask'))
        assert logged[f's{stage}.loss_cls'] > 0 and logged[f's{stage}.loss_mask'] > 0
    assert math.isfinite(logged['coco/bbox_mAP']) and math.isfinite(logged['coco/segm_mAP'])
