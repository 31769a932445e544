"""Whole public models of ConvNeXt V1, and classifiers in any layout, load into our recipes by every tool that tests."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from framework_models import make_runner
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_models import NARROW
from torch import nn

import mmconvnextv2
from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import load_backbone
from mmconvnextv2.checkpoint.whole_model import whole_model_weights
from mmconvnextv2.engine.hooks.matching_weights import MatchingWeightsHook
from mmconvnextv2.utils.config import import_scope, load_config

ROOT = Path(__file__).parents[2]
WIDTHS = list(NARROW['channels'])
PAIRS = [  # MMDetection's and MMSegmentation's configs, and ours
    ('mmdet', 'mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', 'mask-rcnn_convnextv1-t_fpn_ms-crop-3x_coco'),
    (
        'mmdet',
        'cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco',
        'cascade-mask-rcnn_convnextv1-t_fpn_ms-crop-3x_coco',
    ),
    ('mmseg', 'convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512', 'upernet_convnextv1-t_160k_ade20k-512x512'),
]


def narrow(cfg):
    """Narrow a config's backbone; heads keep their widths."""
    cfg = deepcopy(cfg)
    cfg.model.backbone.update(arch=dict(NARROW), init_cfg=None)
    for reader in ('neck', 'decode_head'):
        if reader in cfg.model:
            cfg.model[reader].in_channels = WIDTHS
    if 'rpn' in (cfg.model.get('test_cfg') or {}):
        cfg.model.test_cfg.rpn.update(nms_pre=20, max_per_img=20)
    if 'auxiliary_head' in cfg.model:
        cfg.model.auxiliary_head.in_channels = WIDTHS[2]
    return cfg


def build_theirs(scope, name):
    """Build MMDetection's or MMSegmentation's own model with random weights, statistics included."""
    package = Path(pytest.importorskip(scope).__file__).parent
    cfg = narrow(Config.fromfile(str(package / '.mim' / 'configs' / 'convnext' / f'{name}.py')))
    import_scope(cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    for value in model.state_dict().values():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.01, 0.2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def as_official(state):
    """Return the file as Meta AI's code writes it: the backbone under the official names."""
    names = (('depthwise_conv', 'dwconv'), ('pointwise_conv', 'pwconv'))
    renamed = {}
    for name, value in state.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs) if name.startswith('backbone.') else name
        renamed[name] = value
    return renamed


def outputs(model, scope):
    """Return a model's maps, and all that it computes from them: proposals, box and mask predictions, logits."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    size = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96), scale_factor=(1.0, 1.0))
    samples = None
    if scope == 'mmdet':
        samples = [pytest.importorskip('mmdet.structures').DetDataSample(metainfo=size)]
    found = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            for one in value:
                collect(one)

    with torch.no_grad(), DefaultScope.overwrite_default_scope(scope):
        collect(model.extract_feat(images))
        maps = len(found)
        collect(model(images, samples, mode='tensor'))
    return found[:maps], found[maps:]


@pytest.mark.parametrize('scope, theirs, ours', PAIRS, ids=lambda text: text[:12])
@pytest.mark.parametrize('form', ['OpenMMLab', 'Meta AI'])
def test_public_models_of_convnext_v1(tmp_path, scope, theirs, ours, form):
    """A file as MMDetection 2, MMSegmentation 0.x or Meta AI's code wrote it, under DistributedDataParallel or not,
    loads strictly into our recipe, whose outputs are then those of MMDetection's or MMSegmentation's own model."""
    model = build_theirs(scope, theirs)
    state = model.state_dict() if form == 'OpenMMLab' else as_official(model.state_dict())
    assert form == 'OpenMMLab' or any('.dwconv.' in name for name in state)
    content = dict(meta=dict(CLASSES=('cat', 'dog'), epoch=36), state_dict=state)
    if form == 'Meta AI':  # which holds no class names
        content = dict(state_dict={f'module.{name}': value for name, value in state.items()})
    torch.save(content, tmp_path / 'public.pth')
    loaded = mmconvnextv2.load(narrow(load_config(ours)), str(tmp_path / 'public.pth'), device='cpu')
    backbone = ConvNeXtV2(dict(NARROW), response_norm=None, layer_scale_init_value=1.0)
    load_backbone(backbone, str(tmp_path / 'public.pth'))
    found = backbone.state_dict()
    assert all(torch.equal(value, model.state_dict()[f'backbone.{name}']) for name, value in found.items())
    assert len(loaded.classes) == (2 if form == 'OpenMMLab' else dict(mmdet=80, mmseg=150)[scope])
    for wanted, found, tolerance in zip(outputs(model, scope), outputs(loaded.module, scope), (1e-5, 1e-3)):
        assert len(wanted) == len(found) > 0
        for one, other in zip(found, wanted):  # a box that rounds to another cell changes a few values
            assert other.std() > 0 and (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize('layout', ['official-dense', 'timm', 'huggingface'])
def test_classifiers_of_other_layouts(tmp_path, layout):
    """A classifier in a foreign layout is tested under the names of MMPretrain's: through ``load`` and through the hook
    of ``tools/test.py``; a second reading changes nothing, and another backbone's names stay as they are."""
    from mmconvnextv2.checkpoint import classifier_from_canonical

    cfg = load_config('convnextv2-a_fcmae-ft_in1k-224')
    cfg.model.backbone.update(arch=dict(NARROW), init_cfg=None)
    cfg.model.head.in_channels = WIDTHS[-1]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    weights = model.state_dict()
    torch.save(classifier_from_canonical(weights, layout), tmp_path / 'public.pth')
    loaded = mmconvnextv2.load(cfg, str(tmp_path / 'public.pth'), device='cpu')
    assert len(loaded.classes) == 1000
    given = torch.load(tmp_path / 'public.pth', weights_only=True)

    runner = make_runner(MODELS.build(dict(cfg.model, _scope_='mmpretrain')), tmp_path, experiment_name=layout)
    runner.register_hook(MatchingWeightsHook(whole=True))
    runner.load_checkpoint(str(tmp_path / 'public.pth'))
    renamed = whole_model_weights(given)
    for state in (loaded.module.state_dict(), runner.model.state_dict(), renamed, whole_model_weights(renamed)):
        assert all(torch.equal(state[name], value) for name, value in weights.items())
    resnet = {'backbone.layer1.0.conv1.weight': torch.ones(1), 'backbone.norm1.weight': torch.ones(1)}
    assert whole_model_weights(resnet) == resnet


def test_what_is_missing_is_named(tmp_path):
    """Weights of a backbone alone, or of another size, are refused in one line that says where they belong."""
    cfg = narrow(load_config('upernet_convnextv1-t_160k_ade20k-512x512'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    torch.save(as_official({f'backbone.{k}': v for k, v in model.backbone.state_dict().items()}), tmp_path / 'part.pth')
    with pytest.raises(ValueError, match=re.escape('model.backbone.init_cfg.checkpoint')):
        mmconvnextv2.load(cfg, str(tmp_path / 'part.pth'), device='cpu')
