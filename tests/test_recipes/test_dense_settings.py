"""Detection and segmentation recipes have the settings of arXiv 2301.00808, appendices A.3 and A.4, and of ConvNeXt V1.

The tables here are written from the papers, not read from the configs.
"""

from glob import glob
from pathlib import Path

import pytest
import torch
from leaf_configs import read_leaf
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.models.fp32_detection import FP32ATSSHead, FP32RetinaHead, FP32RPNHead, FP32SingleRoIExtractor
from mmconvnextv2.utils.config import inner_datasets

CONFIGS = Path(__file__).parents[2] / 'configs'
# V1's Cascade recipes: learning rate, layer decay, drop path; large and huge as V1's large from ImageNet-22K
CASCADE = dict(t=(2e-4, 0.7, 0.4), b=(2e-4, 0.8, 0.7), l=(1e-4, 0.7, 0.7), h=(1e-4, 0.7, 0.7))
DENSE = ('mask_rcnn', 'cascade_mask_rcnn', 'faster_rcnn', 'retinanet', 'atss', 'upernet', 'semantic_fpn')
HEADS = ('dino', 'ddq', 'mask2former', 'rtmdet')
RATIOS = (0.75, 0.875, 1.0, 1.125, 1.25)
DEPTHS = dict(t=(3, 3, 9, 3), b=(3, 3, 27, 3), l=(3, 3, 27, 3), h=(3, 3, 27, 3))
SUPERVISED = dict(convnextv1='/convnext_{}_1k_224_ema.pth', convnextv2='work_dirs/{}_supervised_in1k-224/epoch_300.pth')
# Our recipe of a data set, and the upstream recipe whose images, length and layout it takes
UPSTREAM_SETS = {
    'upernet_convnextv2-b_90k_cityscapes-512x1024': (
        'mmseg::mask2former/mask2former_swin-b-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024'
    ),
    'upernet_convnextv2-b_80k_pascal-context-480x480': (
        'mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-80k_pascal-context-480x480'
    ),
    'upernet_convnextv2-b_80k_pascal-context-59-480x480': (
        'mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-80k_pascal-context-59-480x480'
    ),
    'upernet_convnextv2-b_40k_voc12aug-512x512': 'mmseg::upernet/upernet_r50_4xb4-40k_voc12aug-512x512',
    'upernet_convnextv2-b_160k_coco-stuff164k-512x512': (
        'mmseg::deeplabv3/deeplabv3_r50-d8_4xb4-160k_coco-stuff164k-512x512'
    ),
    'semantic-fpn_convnextv2-b_160k_ade20k-512x512': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512',
    'mask-rcnn_convnextv2-b_fpn_cityscapes': 'mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes',
    'mask-rcnn_convnextv2-b_fpn_sample1e-3-ms-1x_lvis-v1': 'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1',
    'mask-rcnn_convnextv2-b_fpn_seesaw-sample1e-3-ms-2x_lvis-v1': (
        'mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1'
    ),
    'faster-rcnn_convnextv2-b_fpn_voc0712': 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712',
}
UPSTREAM_MODELS = {
    'faster-rcnn_convnextv2-t_fpn_1x_coco': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'retinanet_convnextv2-t_fpn_1x_coco': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    'atss_convnextv2-t_fpn_1x_coco': 'mmdet::atss/atss_r50_fpn_1x_coco',
    'semantic-fpn_convnextv2-t_160k_ade20k-512x512': 'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512',
}
LIVE = ('RandomResize', 'RandomChoiceResize', 'Resize', 'RandomCrop', 'RandomFlip', 'PhotoMetricDistortion')


def leaves(pattern):
    return sorted(Path(path) for path in glob(str(CONFIGS / pattern)))


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
    cfg = read_leaf(path)
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
    start = '_1k_224_fcmae.pt'
    if '_supervised_' in path.stem:
        start = supervised_start(path.stem)
    assert cfg.model.backbone.init_cfg.checkpoint.endswith(start)
    check_version(cfg.model.backbone, path.stem)


def supervised_start(stem):
    """Return the end of the supervised weights' place: V1's released ones, and those that our own recipe trains."""
    version, size = next(part for part in stem.split('_') if part.startswith('convnext')).split('-')
    return SUPERVISED[version].format(
        dict(b='base', l='large')[size] if version == 'convnextv1' else f'{version}-{size}'
    )


def check_version(backbone, stem):
    """ConvNeXt V1 has LayerScale and no GRN, V2 the reverse."""
    with torch.device('meta'):
        names = dict(
            ConvNeXtV2(**{k: v for k, v in backbone.items() if k not in ('type', 'init_cfg')}).named_parameters()
        )
    block = {name[len('stages.0.0.') :] for name in names if name.startswith('stages.0.0.')}
    assert ('gamma' in block, 'grn.gamma' in block) == (('convnextv1' in stem), ('convnextv2' in stem))


@pytest.mark.parametrize('path', leaves('mask_rcnn/*_1x_coco.py'), ids=lambda path: path.stem)
def test_mask_rcnn_1x(path):
    """12 epochs at batch 16 and one scale, AdamW 1e-4, fine-tuned weights; everything else as in the 3x recipe."""
    cfg, long = read_leaf(path), read_leaf(path.with_name(path.name.replace('_1x_', '_lsj-3x_')))
    check_optimizer(cfg, 1e-4, (0.95,))
    assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline):
        [resize] = steps_of(pipeline, 'Resize')
        assert tuple(resize.scale) == (1333, 800)
    assert '/im1k/' in cfg.model.backbone.init_cfg.checkpoint
    cfg.model.backbone.init_cfg = long.model.backbone.init_cfg
    cfg.model.data_preprocessor.batch_augments = long.model.data_preprocessor.batch_augments
    assert cfg.model == long.model


@pytest.mark.parametrize('path', leaves('mask_rcnn/*1gpu*.py'), ids=lambda path: path.stem)
def test_one_gpu(path):
    """Accumulation makes the batch of 32 on one GPU, and the warm-up is as long in images."""
    cfg, full = read_leaf(path), read_leaf(path.with_name(path.name.replace('-1gpu', '')))
    assert cfg.train_dataloader.batch_size * cfg.optim_wrapper.accumulative_counts == 32
    assert cfg.param_scheduler[0].end * cfg.train_dataloader.batch_size == full.param_scheduler[0].end * 32


@pytest.mark.parametrize('size', CASCADE)
def test_cascade(size):
    """V1's rates, 36 epochs at batch 16, three 4conv1fc SyncBN heads with GIoU of weight 10, scales 480 to 800."""
    lr, decay, drop_path = CASCADE[size]
    cfg = read_leaf(CONFIGS / f'cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-{size}_fpn_ms-crop-3x_coco.py')
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


@pytest.mark.parametrize('size', CASCADE)
def test_cascade_from_fcmae(size):
    """With FCMAE weights, rates are those of the paper's sweep for them: the stem trains at 0.95 to the power of the
    steps below the head, instead of the 1 % that V1's decay of 0.7 leaves large and huge."""
    cfg = read_leaf(CONFIGS / f'cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-{size}_fcmae_fpn_ms-crop-3x_coco.py')
    old = read_leaf(CONFIGS / f'cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-{size}_fpn_ms-crop-3x_coco.py')
    check_optimizer(cfg, 1e-4, (0.95,))
    assert cfg.model.backbone.drop_path_rate in (0.2, 0.3, 0.4, 0.5)
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('_1k_224_fcmae.pt')
    groups = 3 + DEPTHS[size][2] // 3  # the stem is below stages 1, 2 and 4 and the triples of stage 3
    stem, last, head = learning_rates(cfg, DEPTHS[size])
    assert (stem, last, head) == pytest.approx((1e-4 * 0.95 ** (groups + 1), 1e-4 * 0.95, 1e-4))
    lr, decay, _ = CASCADE[size]
    assert learning_rates(old, DEPTHS[size])[0] == pytest.approx(lr * decay ** (groups + 1))
    assert cfg.model.roi_head == old.model.roi_head and cfg.train_dataloader == old.train_dataloader


def learning_rates(cfg, depths):
    """Return the learning rates of the stem, the last block and a head, as MMEngine's optimizer has them."""
    model = nn.Module()
    model.backbone, model.head = ConvNeXtV2(dict(depths=depths, channels=(2, 2, 2, 2))), nn.Linear(2, 2)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, 'type': 'OptimWrapper'})
    rates = {id(one): group['lr'] for group in wrapper.optimizer.param_groups for one in group['params']}
    weights = (model.backbone.downsample_layers[0][0], model.backbone.stages[3][2].pointwise_conv1, model.head)
    return tuple(rates[id(one.weight)] for one in weights)


def upstream(name):
    scope, _, path = name.partition('::')
    package = Path(__import__(scope).__file__).parent
    return read_leaf(package / '.mim' / 'configs' / f'{path}.py')


def live_steps(cfg, split):
    """Return what the augmentations of a split do, without loading, packing and padding."""
    dataset = next(inner_datasets(cfg[f'{split}_dataloader'].dataset))
    return [{**step, 'prob': step.get('prob')} for step in dataset.pipeline if step.type in LIVE]


def places(cfg, split):
    """Return the root, folders and list of each data set of a split."""
    return [
        (one.data_root.rstrip('/'), dict(one.data_prefix), one.get('ann_file', ''), one.get('filter_cfg'))
        for one in inner_datasets(cfg[f'{split}_dataloader'].dataset)
    ]


def wrappers(dataset):
    """Return the type and the number of each wrapper around a data set."""
    inner = dataset.get('dataset')
    own = [(dataset.type, dataset.get('times'), dataset.get('oversample_thr'))]
    return own + wrappers(inner) if inner else []


@pytest.mark.parametrize('leaf', UPSTREAM_SETS)
def test_data_sets_follow_upstream(leaf):
    """Layout, repetitions, augmentation, test sizes, length, steps and batch are those of the upstream recipe; the
    optimizer is this project's, and its learning rate is warmed up and ends with the run."""
    cfg, theirs = read_leaf(leaves(f'*/{leaf}.py')[0]), upstream(UPSTREAM_SETS[leaf])
    augmented = upstream('mmseg::_base_/datasets/cityscapes') if 'mask2former' in UPSTREAM_SETS[leaf] else theirs
    for split in ('train', 'val'):
        assert places(cfg, split) == places(theirs, split)
        assert wrappers(cfg[f'{split}_dataloader'].dataset) == wrappers(theirs[f'{split}_dataloader'].dataset)
        assert live_steps(cfg, split) == live_steps(augmented, split)
    length = 'max_epochs' if cfg.default_scope == 'mmdet' else 'max_iters'
    assert cfg.train_cfg[length] == theirs.train_cfg[length] == cfg.param_scheduler[-1].end
    batch = cfg.auto_scale_lr.base_batch_size
    assert batch == 8 * cfg.train_dataloader.batch_size
    if cfg.default_scope == 'mmdet':
        check_optimizer(cfg, 1e-4, (0.95,))
        assert cfg.param_scheduler[-1].milestones == theirs.param_scheduler[-1].milestones
        counts = [head.num_classes for head in (theirs.model.roi_head.bbox_head, cfg.model.roi_head.bbox_head)]
    else:
        check_optimizer(cfg, 1e-4, (0.9,))
        assert batch == 16 and cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval
        assert cfg.model.test_cfg == theirs.model.test_cfg
        counts = [theirs.model.decode_head.num_classes, cfg.model.decode_head.num_classes]
        [labels] = {step.num_classes for step in cfg.test_pipeline if step.type == 'LoadCheckedLabels'}
        assert labels == counts[1]
    assert counts[0] == counts[1]
    assert '/im1k/' in cfg.model.backbone.init_cfg.checkpoint


@pytest.mark.parametrize('leaf', UPSTREAM_MODELS)
def test_detectors_are_upstream_s(leaf):
    """Neck, heads, assigners and tests are those of the upstream recipe, but for the widths that the neck reads and
    types that compute boxes in float32."""
    cfg, theirs = read_leaf(leaves(f'*/{leaf}.py')[0]).model, upstream(UPSTREAM_MODELS[leaf]).model
    assert list(cfg.neck.in_channels) == [96, 192, 384, 768]
    cfg.neck.in_channels = theirs.neck.in_channels
    assert without_types(cfg.neck) == without_types(theirs.neck)
    for part in ('rpn_head', 'roi_head', 'bbox_head', 'decode_head', 'test_cfg'):
        assert without_types(cfg.get(part)) == without_types(theirs.get(part)), part
    assigned = {key: value for key, value in cfg.train_cfg.items() if key != 'sampler'}
    assert assigned == {key: value for key, value in theirs.train_cfg.items() if key != 'sampler'}


def without_types(node):
    """Return a config in which FP32 types have the names of what they subclass."""
    if isinstance(node, dict):
        return {key: without_types(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [without_types(value) for value in node]
    return node.replace('FP32', '') if isinstance(node, str) else node


V1 = {  # README and configs of facebookresearch/ConvNeXt: learning rate, decay, drop path
    'mask-rcnn_convnextv1-t_fpn_ms-crop-3x_coco': (1e-4, 0.95, 0.4),
    'cascade-mask-rcnn_convnextv1-t_fpn_ms-crop-3x_coco': (2e-4, 0.7, 0.4),
    'cascade-mask-rcnn_convnextv1-s_fpn_ms-crop-3x_coco': (2e-4, 0.7, 0.6),
    'cascade-mask-rcnn_convnextv1-b_fpn_ms-crop-3x_coco': (2e-4, 0.8, 0.7),
    'cascade-mask-rcnn_convnextv1-b_fpn_in22k-ms-crop-3x_coco': (1e-4, 0.8, 0.6),
    'cascade-mask-rcnn_convnextv1-l_fpn_in22k-ms-crop-3x_coco': (1e-4, 0.7, 0.7),
    'cascade-mask-rcnn_convnextv1-xl_fpn_in22k-ms-crop-3x_coco': (1e-4, 0.7, 0.8),
    'upernet_convnextv1-t_160k_ade20k-512x512': (1e-4, 0.9, 0.4),
    'upernet_convnextv1-s_160k_ade20k-512x512': (1e-4, 0.9, 0.3),
    'upernet_convnextv1-b_160k_ade20k-512x512': (1e-4, 0.9, 0.4),
    'upernet_convnextv1-b_in22k-160k_ade20k-640x640': (1e-4, 0.9, 0.4),
    'upernet_convnextv1-l_in22k-160k_ade20k-640x640': (1e-4, 0.9, 0.4),
    'upernet_convnextv1-xl_in22k-160k_ade20k-640x640': (8e-5, 0.9, 0.4),
}


@pytest.mark.parametrize('name', V1)
def test_convnext_v1(name):
    """ConvNeXt V1's recipes have the published rates, decay per stage or per group, drop path, start and schedule."""
    (path,) = CONFIGS.glob(f'*/{name}.py')
    cfg, is_segmentor = read_leaf(path), name.startswith('upernet')
    lr, decay, drop_path = V1[name]
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr) and cfg.optim_wrapper.optimizer.weight_decay == 0.05
    paramwise = cfg.optim_wrapper.paramwise_cfg
    assert (paramwise.decay_rate, paramwise.decay_type) == (decay, 'stage_wise' if is_segmentor else 'group_wise')
    backbone = cfg.model.backbone
    assert (backbone.drop_path_rate, backbone.response_norm, backbone.layer_scale_init_value) == (drop_path, None, 1.0)
    assert backbone.init_cfg.checkpoint.endswith('_22k_224.pth' if 'in22k' in name else '_1k_224.pth')
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs')) == (160000 if is_segmentor else 36)


PAPER_UPERNET = [path for path in leaves('upernet/*ade20k*.py') if path.stem not in V1]


@pytest.mark.parametrize('path', PAPER_UPERNET, ids=lambda path: path.stem)
def test_upernet(path):
    """160k iterations at batch 16, rates and drop path of the sweep, slide test with V1's stride, and test-time
    augmentation at exactly the paper's ratios, each with its mirror image."""
    cfg = read_leaf(path)
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
    if '_supervised_' in path.stem:
        wanted = supervised_start(path.stem)
    check_version(cfg.model.backbone, path.stem)
    assert wanted in cfg.model.backbone.init_cfg.checkpoint


@pytest.mark.parametrize(
    'path',
    [path for task in ('mask_rcnn', 'cascade_mask_rcnn', 'faster_rcnn') for path in leaves(f'{task}/*-t_*.py')],
    ids=lambda path: path.stem,
)
def test_boxes_are_made_in_float32(path):
    """Every RoI extractor and the RPN are those that compute in float32 under mixed precision."""
    model = read_leaf(path).model
    assert model.rpn_head.type == 'FP32RPNHead'
    extractors = [model.roi_head[key].type for key in model.roi_head if key.endswith('_extractor')]
    assert len(extractors) == 1 + ('mask_head' in model.roi_head) and set(extractors) == {'FP32SingleRoIExtractor'}


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


@pytest.mark.parametrize('head', [FP32RetinaHead, FP32ATSSHead, FP32RPNHead])
def test_dense_heads_under_bf16(head):
    """Under bf16 autocast a head gives its parent's outputs as float32, so that anchors beyond 256 are not rounded."""
    torch.manual_seed(0)
    anchors = dict(type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[7])
    parent = head.__mro__[2]
    sizes = dict(num_classes=1, in_channels=32, feat_channels=32, anchor_generator=anchors)
    ours, theirs = head(**sizes), parent(**sizes)
    theirs.load_state_dict(ours.state_dict())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = (torch.randn(1, 32, 48, 48),)
        exact, half = ours(features), theirs(features)
    assert half[0][0].dtype == torch.bfloat16 and len(exact) == len(half) >= 2
    for [mine], [other] in zip(exact, half):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other.float(), rtol=0, atol=0)
    [places], [rounded] = (
        ours.prior_generator.grid_priors([(48, 48)], one[0][0].dtype, 'cpu') for one in (exact, half)
    )
    assert (places - rounded.float()).abs().max() >= 1


@pytest.mark.parametrize(
    'path',
    [path for task in DENSE for size in 'tb' for path in leaves(f'{task}/*-{size}_*.py')]
    + [path for task in HEADS for path in leaves(f'{task}/*-t_*.py')],
    ids=lambda path: path.stem,
)
def test_switches_are_keys(path):
    """Gradient checkpointing and frozen stages are keys of every recipe, off, so that one override switches them on."""
    backbone = read_leaf(path).model.backbone
    assert backbone.with_cp is False and backbone.frozen_stages == 0
