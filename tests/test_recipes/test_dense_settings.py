"""Detection and segmentation recipes have the settings of arXiv 2301.00808, appendices A.3 and A.4, and of ConvNeXt V1.

The tables here are written from the papers, not read from the configs.
"""

from glob import glob
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmconvnextv2.models.fp32_detection import FP32SingleRoIExtractor

CONFIGS = Path(__file__).parents[2] / 'configs'
# V1's Cascade recipes: learning rate, layer decay, drop path; large and huge as V1's large from ImageNet-22K
CASCADE = dict(t=(2e-4, 0.7, 0.4), b=(2e-4, 0.8, 0.7), l=(1e-4, 0.7, 0.7), h=(1e-4, 0.7, 0.7))
RATIOS = (0.75, 0.875, 1.0, 1.125, 1.25)


def leaves(pattern):
    return sorted(Path(path) for path in glob(str(CONFIGS / pattern)))


def load(path):
    return Config.fromfile(str(path))


def steps_of(pipeline, kind):
    return [step for step in pipeline if step.type == kind]


def check_optimizer(cfg, lr, decay_rates):
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.weight_decay, tuple(optimizer.betas)) == ('AdamW', 0.05, (0.9, 0.999))
    assert optimizer.lr == pytest.approx(lr) and cfg.optim_wrapper.paramwise_cfg.decay_rate in decay_rates
    assert cfg.optim_wrapper.type == 'BF16OptimWrapper'


@pytest.mark.parametrize('path', leaves('mask_rcnn/*lsj-3x_coco.py'), ids=lambda path: path.stem)
def test_mask_rcnn(path):
    """36 epochs at batch 32, AdamW 1e-4, decay and drop path of the sweep, jitter 0.1 to 2 to 1024, soft-NMS after the
    RoI head and ordinary NMS before it, one test scale."""
    cfg = load(path)
    check_optimizer(cfg, 1e-4, (0.9, 0.95))
    assert cfg.train_cfg.max_epochs == 36 and cfg.param_scheduler[1].milestones == [27, 33]
    assert cfg.auto_scale_lr.base_batch_size == 32 == 8 * cfg.train_dataloader.batch_size
    assert cfg.model.backbone.drop_path_rate in (0.2, 0.3, 0.4, 0.5)
    [jitter] = steps_of(cfg.train_dataloader.dataset.pipeline, 'RandomResize')
    [crop] = steps_of(cfg.train_dataloader.dataset.pipeline, 'RandomCrop')
    assert tuple(jitter.scale) == (1024, 1024) and tuple(jitter.ratio_range) == (0.1, 2.0)
    assert tuple(crop.crop_size) == (1024, 1024)
    assert cfg.model.test_cfg.rcnn.nms.type == 'soft_nms' and cfg.model.test_cfg.rpn.nms.type == 'nms'
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline].count('Resize') == 1
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('_1k_224_fcmae.pt')


@pytest.mark.parametrize('path', leaves('mask_rcnn/*1gpu*.py'), ids=lambda path: path.stem)
def test_one_gpu(path):
    """Accumulation makes the batch of 32 on one GPU, and the warm-up is as long in images."""
    cfg, full = load(path), load(path.with_name(path.name.replace('-1gpu', '')))
    assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == 32
    assert cfg.param_scheduler[0].end * cfg.train_dataloader.batch_size == full.param_scheduler[0].end * 32


@pytest.mark.parametrize('size', CASCADE)
def test_cascade(size):
    """V1's rates, 36 epochs at batch 16, three 4conv1fc SyncBN heads with GIoU of weight 10, scales 480 to 800."""
    lr, decay, drop_path = CASCADE[size]
    cfg = load(CONFIGS / f'cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-{size}_fpn_ms-crop-3x_coco.py')
    check_optimizer(cfg, lr, (decay,))
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.train_cfg.max_epochs == 36 and cfg.param_scheduler[1].milestones == [27, 33]
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    heads = cfg.model.roi_head.bbox_head
    assert [head.bbox_coder.target_stds[0] for head in heads] == [0.1, 0.05, 0.033]
    for head in heads:
        assert (head.num_shared_convs, head.num_shared_fcs, head.norm_cfg.type) == (4, 1, 'SyncBN')
        assert head.loss_bbox.type == 'GIoULoss' and head.loss_bbox.loss_weight == 10 and head.reg_decoded_bbox
    [choice] = steps_of(cfg.train_dataloader.dataset.pipeline, 'RandomChoice')
    assert [scale[0] for scale in choice.transforms[0][0].scales] == list(range(480, 801, 32))


@pytest.mark.parametrize('path', leaves('upernet/*.py'), ids=lambda path: path.stem)
def test_upernet(path):
    """160k iterations at batch 16, rates and drop path of the sweep, slide test with V1's stride, and test-time
    augmentation at exactly the paper's ratios, each with its mirror image."""
    cfg = load(path)
    side = 640 if '640x640' in path.stem else 512
    check_optimizer(cfg, 1e-4, (0.8, 0.9))
    assert cfg.train_cfg.max_iters == 160000 and cfg.auto_scale_lr.base_batch_size == 16
    assert 8 * cfg.train_dataloader.batch_size == 16
    assert cfg.model.backbone.drop_path_rate in (0.1, 0.2, 0.3, 0.4)
    assert cfg.model.test_cfg.mode == 'slide' and tuple(cfg.model.test_cfg.crop_size) == (side, side)
    assert tuple(cfg.model.test_cfg.stride) == {512: (341, 341), 640: (426, 426)}[side]
    assert tuple(cfg.model.data_preprocessor.size) == (side, side)
    [crop] = steps_of(cfg.train_dataloader.dataset.pipeline, 'RandomCrop')
    assert tuple(crop.crop_size) == (side, side)
    sizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [tuple(step.scale) for step in sizes] == [(int(4 * side * r), int(side * r)) for r in RATIOS]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    start = dict(fcmae='pt_only/', in22k='im22k/')
    wanted = next((folder for word, folder in start.items() if word in path.stem), 'im1k/')
    assert wanted in cfg.model.backbone.init_cfg.checkpoint


@pytest.mark.parametrize(
    'path', leaves('mask_rcnn/*-t_*.py') + leaves('cascade_mask_rcnn/*-t_*.py'), ids=lambda path: path.stem
)
def test_boxes_are_made_in_float32(path):
    """Every RoI extractor and the RPN are those that compute in float32 under mixed precision."""
    model = load(path).model
    assert model.rpn_head.type == 'FP32RPNHead'
    assert model.roi_head.bbox_roi_extractor.type == model.roi_head.mask_roi_extractor.type == 'FP32SingleRoIExtractor'


def test_roi_extractor_under_bf16():
    """Under bf16 autocast the extractor gives, from bf16 channels-last maps, what it gives from the same values in
    float32; boxes beyond 256 keep their fractions."""
    torch.manual_seed(0)
    extractor = FP32SingleRoIExtractor(dict(type='RoIAlign', output_size=3, sampling_ratio=2), 4, [8])
    features = torch.randn(1, 4, 64, 64).bfloat16().contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, 300.25, 290.5, 420.75, 400.125]])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = extractor((features,), rois)
    exact = extractor((features.float().contiguous(),), rois)
    rounded = extractor((features.float().contiguous(),), rois.bfloat16().float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0, atol=0)
    assert (rounded - exact).abs().max() > 1e-2


@pytest.mark.parametrize(
    'path',
    leaves('mask_rcnn/*.py') + leaves('cascade_mask_rcnn/*.py') + leaves('upernet/*.py'),
    ids=lambda path: path.stem,
)
def test_switches_are_keys(path):
    """Gradient checkpointing and frozen stages are keys of every recipe, off, so that one override switches them on."""
    backbone = load(path).model.backbone
    assert backbone.with_cp is False and backbone.frozen_stages == 0
