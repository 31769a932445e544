"""Pixels without data are found by every rule, follow the image through every step that moves pixels, and reach the
backbone inside of detectors and segmentors, which then see an image in a padded batch as they see it alone."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from torch import nn

from mmconvnextv2.datasets.valid_pixels import LoadValidPixels, MarkInvalidPixels, WithValidPixels
from mmconvnextv2.utils.config import import_scope, load_config, settle_padding

NARROW = dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32))


@pytest.fixture
def image():
    """Random colours without a zero, but for a corner and single channels."""
    image = np.random.default_rng(0).integers(1, 256, (40, 60, 3), dtype=np.uint8)
    image[:10, :20] = 0
    image[30, 30, 1] = 0
    return image


def corner(image):
    valid = np.ones(image.shape[:2], bool)
    valid[:10, :20] = False
    return valid


def test_no_data_values(image):
    """One value, one per channel, all or any of the channels; NaN is always invalid; a value that never occurs, and an
    image without any rule, leave everything valid."""
    found = {
        name: LoadValidPixels(**rule)(dict(img=image))['valid_pixels']
        for name, rule in dict(all=dict(no_data=0), any=dict(no_data=0, bands='any'), never=dict(no_data=-9999)).items()
    }
    expected = corner(image)
    assert np.array_equal(found['all'], expected) and found['never'].all()
    expected[30, 30] = False
    assert np.array_equal(found['any'], expected)
    wide = image.astype(np.float32)
    wide[:, :, 1] = np.float32(-3.4e38)
    wide[20, 20, 0] = np.nan
    per_band = LoadValidPixels(no_data=[1000, -3.4e38, 1000], bands='any')(dict(img=wide))['valid_pixels']
    assert not per_band.any()
    assert np.argwhere(~LoadValidPixels()(dict(img=wide))['valid_pixels']).tolist() == [[20, 20]]


def test_alpha_and_mask_files(image, tmp_path):
    """An alpha channel and a mask beside the image or in a folder say the same."""
    valid = corner(image)
    cv2.imwrite(str(tmp_path / 'a.png'), np.dstack([image, valid * np.uint8(255)]))
    cv2.imwrite(str(tmp_path / 'a_mask.png'), valid * np.uint8(1))
    (tmp_path / 'masks').mkdir()
    cv2.imwrite(str(tmp_path / 'masks' / 'a.tif'), valid * np.uint8(255))
    rules = (
        dict(alpha=True),
        dict(mask_suffix='_mask.png'),
        dict(mask_suffix='.tif', mask_folder=str(tmp_path / 'masks')),
    )
    for rule in rules:
        found = LoadValidPixels(**rule)(dict(img=image, img_path=str(tmp_path / 'a.png')))
        assert np.array_equal(found['valid_pixels'], valid)


def test_bad_input_says_what_to_do(image, tmp_path):
    """Missing alpha channels and masks, wrong sizes and unknown rules are refused in one message."""
    path = str(tmp_path / 'b.png')
    cv2.imwrite(path, image)
    cv2.imwrite(str(tmp_path / 'b_mask.png'), image[:30, :, 0])
    results = dict(img=image, img_path=path)
    for rule, said in (
        (dict(alpha=True), 'no alpha channel'),
        (dict(mask_suffix='_none.png'), 'expects a mask for every image'),
        (dict(mask_suffix='_mask.png'), r'shape \(30, 60\), but the image has \(40, 60\)'),
        (dict(no_data=[0, 0]), '2 values, but .* 3 channels'),
    ):
        with pytest.raises(ValueError, match=said):
            LoadValidPixels(**rule)(dict(results))
    with pytest.raises(ValueError, match="bands='both'"):
        LoadValidPixels(bands='both')
    with pytest.raises(ValueError, match='WithValidPixels'):
        MarkInvalidPixels()(dict(img=image, valid_pixels=np.ones((20, 60), bool)))


STEPS = dict(
    mmdet=[
        dict(type='RandomResize', scale=(90, 60), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(50, 50), allow_negative_crop=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Pad', size=(70, 80), pad_val=dict(img=(114, 114, 114))),
    ],
    mmseg=[
        dict(type='RandomResize', scale=(90, 60), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(50, 50)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Pad', size=(70, 80)),
    ],
    mmpretrain=[
        dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.2, 1.0), backend='cv2', interpolation='bicubic'),
        dict(type='RandomFlip', prob=0.5),
    ],
)


@pytest.mark.parametrize('scope', STEPS)
@pytest.mark.parametrize('kind', (np.uint8, np.float32))
def test_map_follows_the_image(scope, kind):
    """After random resizing, crops, flips and padding, the image and the map agree: pixels of a constant image that are
    valid have its value, and those of the no-data corner or of padding are invalid. The random numbers are those that
    the steps draw without the map."""
    import_scope(Config(dict(default_scope=scope)))
    image = np.full((40, 60, 3), 200, kind)
    valid = corner(image)
    image[~valid] = 7 if kind == np.uint8 else np.nan
    boxes = dict(gt_bboxes=np.zeros((0, 4), np.float32), gt_bboxes_labels=np.zeros(0, np.int64))
    labels = dict(gt_seg_map=np.zeros((40, 60), np.uint8), seg_fields=['gt_seg_map'])
    extra = dict(mmdet={}, mmseg=labels, mmpretrain=boxes)[scope]
    with DefaultScope.overwrite_default_scope(scope):
        together = WithValidPixels(copy.deepcopy(STEPS[scope]))
        alone = [TRANSFORMS.build(one) for one in copy.deepcopy(STEPS[scope])]
        for seed in range(12):
            start = dict(img=image, img_shape=(40, 60), ori_shape=(40, 60), valid_pixels=valid, **copy.deepcopy(extra))
            np.random.seed(seed)
            moved = together(copy.deepcopy(start))
            np.random.seed(seed)
            plain = dict(copy.deepcopy(start), img=np.where(valid[..., None], np.full_like(image, 200), 0).astype(kind))
            for step in alone:
                plain = step(plain)
            marked = MarkInvalidPixels()(moved)['img']
            assert marked.shape == plain['img'].shape and moved['valid_pixels'].any()
            assert np.allclose(marked[moved['valid_pixels']], 200, atol=1.0)  # uint8 rounds
            assert np.isnan(marked).all(2).sum() == (~moved['valid_pixels']).sum()
            # Whatever is not the constant was mixed with the corner or padded
            mixed = np.abs(plain['img'].astype(float) - 200).max(2) > 1.6
            assert not (mixed & moved['valid_pixels']).any()
            assert (~moved['valid_pixels'] & ~mixed).mean() < 0.1  # where it mixes in too little to see


def detector(**options):
    """A narrow Faster R-CNN of a recipe, with random weights, in float64."""
    path = 'configs/faster_rcnn/faster-rcnn_convnextv2-t_fpn_lsj-3x_coco.py'
    cfg = load_config(path, {'model.neck.in_channels': [8, 16, 24, 32], 'model.backbone.init_cfg': None, **options})
    return build(cfg, 'mmdet')


def build(cfg, scope):
    registry, cfg.model.backbone.arch = import_registry(scope), NARROW
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = registry.build(cfg.model)
    for parameter in model.backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def import_registry(scope):
    if scope == 'mmdet':
        register_all_modules(init_default_scope=False)
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    return MODELS


def test_one_key_reaches_the_backbone_of_a_detector():
    """With the one key, images of several sizes in a batch have the backbone's maps that each has alone, also where a
    batch augment pads to a fixed size; without it they have not."""
    sizes = ((50, 70), (96, 64), (33, 90))
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    for valid, training in ((True, False), (True, True), (False, False)):
        model = detector(**{'model.backbone.valid_sites': valid})
        together = model.data_preprocessor(dict(inputs=images, data_samples=_samples(sizes)), training)['inputs']
        maps, equal = model.backbone(together.double()), []
        for number, image in enumerate(images):
            one = model.data_preprocessor(dict(inputs=[image], data_samples=_samples(sizes[number : number + 1])))
            for batch, alone in zip(maps, model.backbone(one['inputs'].double())):
                _, _, rows, columns = alone.shape
                equal.append(torch.allclose(batch[number : number + 1, :, :rows, :columns], alone, rtol=0, atol=1e-10))
        assert all(equal) if valid else not any(equal[4:])
        assert together.isnan().any() == valid


def _samples(sizes):
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    boxes = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    meta = [dict(img_shape=size, ori_shape=size, scale_factor=(1, 1)) for size in sizes]
    return [DetDataSample(metainfo=one, gt_instances=boxes) for one in meta]


def test_segmentor_trains_and_slides():
    """A segmentor with the key trains on padded crops with finite loss and gradients, and predicts in sliding windows;
    its pyramid pools valid sites and has the weights of the original."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    options = {
        'model.backbone.init_cfg': None,
        'model.backbone.valid_sites': True,
        'model.decode_head.in_channels': [8, 16, 24, 32],
        'model.decode_head.channels': 8,
        'model.auxiliary_head.in_channels': 24,
        'model.auxiliary_head.channels': 8,
        'model.decode_head.norm_cfg.type': 'BN',
        'model.auxiliary_head.norm_cfg.type': 'BN',
        'model.data_preprocessor.size': (96, 96),
    }
    path = 'configs/upernet/upernet_convnextv2-t_160k_ade20k-512x512.py'
    cfg = load_config(path, options)
    cfg.model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    model = build(cfg, 'mmseg').float()
    plain = load_config(path, {key: value for key, value in options.items() if 'valid' not in key})
    assert set(build(plain, 'mmseg').state_dict()) == set(model.state_dict())
    assert type(model.decode_head).__name__ == 'ValidUPerHead'
    samples = [
        SegDataSample(
            gt_sem_seg=PixelData(data=torch.zeros(1, 60, side, dtype=torch.long)), metainfo=dict(img_shape=(60, side))
        )
        for side in (70, 96)
    ]
    inputs = [torch.rand(3, 60, side) * 255 for side in (70, 96)]
    inputs[1][:, :20] = math.nan
    data = model.train().data_preprocessor(dict(inputs=inputs, data_samples=samples), True)
    losses = model(**data, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)
    with torch.no_grad():
        logits = model.eval().inference(data['inputs'], [dict(ori_shape=(96, 96))] * 2)
    assert logits.isfinite().all()


LEVELS = [8, 16, 24, 32]
BN = dict(type='BN')
EXTRA = dict(num_outs=6, relu_before_extra_convs=True)
READERS = dict(
    fpn=('mmdet', dict(type='FPN', num_outs=5)),
    fpn_from_second_level=('mmdet', dict(type='FPN', start_level=1, add_extra_convs='on_output', num_outs=5)),
    fpn_with_extra_inputs=('mmdet', dict(type='FPN', add_extra_convs='on_input', **EXTRA)),
    fpn_with_extra_laterals=('mmdet', dict(type='FPN', add_extra_convs='on_lateral', norm_cfg=BN, **EXTRA)),
    segmentor_fpn=('mmseg', dict(type='FPN', num_outs=4)),
    mapper=('mmdet', dict(type='ChannelMapper', norm_cfg=dict(type='GN', num_groups=4), num_outs=6)),
    mapper_without_norm=('mmdet', dict(type='ChannelMapper', kernel_size=3)),
    uper_head=('mmseg', dict(type='UPerHead', align_corners=False)),
    uper_by_corners=('mmseg', dict(type='UPerHead', align_corners=True)),
)


ALONE = ('mapper_without_norm', 'uper_by_corners')  # reads no padding; depends on the size of the padded map


@pytest.fixture
def reader(request):
    """Return functions of a map per level: a neck or head of MMDetection or MMSegmentation, and the one that takes
    over, with the same random weights, in float64."""
    scope, options = READERS[request.param]
    width = dict(channels=8, num_classes=3, in_index=[0, 1, 2, 3], norm_cfg=BN)
    if 'Head' not in options['type']:
        width = dict(out_channels=8)
    part = 'decode_head' if 'Head' in options['type'] else 'neck'
    cfg = Config(dict(model={'backbone': dict(valid_sites=True), part: dict(in_channels=LEVELS, **width | options)}))
    plain, registry = copy.deepcopy(cfg.model[part]), import_registry(scope)
    settle_padding(cfg)
    with DefaultScope.overwrite_default_scope(scope):
        models = [registry.build(each).double().eval() for each in (plain, cfg.model[part])]
    assert type(models[1]) is not type(models[0])
    for value in models[0].state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.5)
    models[1].load_state_dict(models[0].state_dict())
    return [lambda maps, run=run: maps_of(run(maps)) for run in models]


def maps_of(outputs):
    return [outputs] if torch.is_tensor(outputs) else list(outputs)


@pytest.mark.parametrize('reader', READERS, indirect=True)
def test_readers_without_padding(reader):
    """Where all sites are valid, necks and heads that take over return what the originals return, and gradients."""
    maps = [torch.randn(2, width, 12 >> level, 20 >> level).double() for level, width in enumerate(LEVELS)]
    found = []
    for run in reader:
        given = [each.clone().requires_grad_() for each in maps]
        outputs = run(given)
        sum(each.square().sum() for each in outputs).backward()
        found.append((outputs, [each.grad for each in given if each.grad is not None]))
    for expected, other in zip(found[0][0] + found[0][1], found[1][0] + found[1][1], strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('reader', [name for name in READERS if name not in ALONE], indirect=True)
def test_readers_in_a_frame(reader):
    """Frames of invalid sites, around an image or behind it, change nothing at its sites; the originals read them."""
    maps = [torch.randn(1, width, 16 >> level, 24 >> level).double() for level, width in enumerate(LEVELS)]
    alone = reader[1](maps)
    for top, left in ((0, 0), (64, 64)):
        frames = [torch.zeros(1, width, 128 >> level, 192 >> level).double() for level, width in enumerate(LEVELS)]
        for level, (frame, one) in enumerate(zip(frames, maps)):
            frame[:, :, top >> level :, left >> level :][:, :, : one.shape[2], : one.shape[3]] = one
        differences = []
        for run in reader:
            differences.append([])
            for one, other in zip(alone, run(frames)):
                stride = 128 // other.shape[2]
                inside = other[:, :, top // stride :, left // stride :][:, :, : one.shape[2], : one.shape[3]]
                differences[-1].append((inside - one).abs().max().item())
        assert max(differences[1]) < 1e-9 and max(differences[0]) > 1e-3


def test_pooling_counts_valid_sites():
    """The pyramid's global average is that of the valid sites, also where they are not a rectangle."""
    from mmconvnextv2.models.padding_segmentation import ValidPPM

    ppm = ValidPPM((1, 2), 4, 3, None, None, None, False).double()
    features = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    padded = nn.functional.pad(features, (0, 4, 0, 6))
    torch.testing.assert_close(ppm(padded)[0][:, :, :1, :1], ppm(features)[0][:, :, :1, :1], rtol=1e-12, atol=1e-12)
    features[:, :, :4, :3] = 0  # an L
    mean = ppm[0][1](features.sum((2, 3), keepdim=True) / 36)
    torch.testing.assert_close(ppm(features)[0][:, :, -1:, -1:], mean, rtol=1e-12, atol=1e-12)
    assert (super(ValidPPM, ppm).forward(padded)[0] - ppm(padded)[0]).abs().max() > 1e-3
    assert all(one.isfinite().all() for one in ppm(torch.zeros(1, 4, 6, 8, dtype=torch.float64)))


def test_marks_without_the_key_are_refused():
    """A pipeline that marks pixels for a backbone that would spread NaN is refused, with the key to set."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='MarkInvalidPixels'), dict(type='PackDetInputs')]
    cfg = Config(
        dict(model=dict(backbone=dict(type='ConvNeXtV2')), train_dataloader=dict(dataset=dict(pipeline=pipeline)))
    )
    with pytest.raises(ValueError, match='model.backbone.valid_sites=True'):
        settle_padding(cfg)
    cfg.model.backbone.valid_sites = True
    settle_padding(cfg)
