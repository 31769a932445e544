"""Every recipe builds, fits its backbone, and has the published size."""

from glob import glob
from pathlib import Path

import pytest
import torch
from leaf_configs import read_leaf
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmconvnextv2.models.convnext_v2 import ARCHS
from mmconvnextv2.utils.config import import_scope
from mmconvnextv2.utils.public_models import find_model

CONFIGS = Path(__file__).parents[2] / 'configs'
NO_LEAVES = ('_base_', 'ablations', 'custom', 'fcmae', 'quickstart', 'small', 'swaps')
TASKS = sorted({path.parent.name for path in CONFIGS.glob('*/*.py')} - set(NO_LEAVES))
LEAVES = sorted(Path(leaf) for task in TASKS for leaf in glob(str(CONFIGS / task / '*.py')))
# Parameters in millions: classifiers facts of the paper's table 14, UperNet of its table 7, ConvNeXt V1 of its README.
PUBLISHED = {
    'upernet_convnextv2-b_160k_ade20k-512x512': 122,
    'upernet_convnextv2-l_160k_ade20k-512x512': 235,
    'upernet_convnextv2-h_160k_ade20k-512x512': 707,
    'upernet_convnextv1-b_supervised_160k_ade20k-512x512': 122,
    'upernet_convnextv1-l_supervised_160k_ade20k-512x512': 235,
    'convnextv2-a_fcmae-ft_in1k-224': 3.7,
    'convnextv2-t_fcmae-ft_in1k-224': 28.6,
    'convnextv2-b_fcmae-ft_in1k-224': 89,
    'convnextv2-l_fcmae-ft_in1k-224': 198,
    'convnextv2-h_fcmae-ft_in1k-224': 660,
    'convnextv2-b_supervised_in1k-224': 89,
    'convnextv2-h_in22k-ft_in1k-512': 660,
    'mask-rcnn_convnextv1-t_fpn_ms-crop-3x_coco': 48,
    'cascade-mask-rcnn_convnextv1-t_fpn_ms-crop-3x_coco': 86,
    'cascade-mask-rcnn_convnextv1-s_fpn_ms-crop-3x_coco': 108,
    'cascade-mask-rcnn_convnextv1-b_fpn_ms-crop-3x_coco': 146,
    'cascade-mask-rcnn_convnextv1-l_fpn_in22k-ms-crop-3x_coco': 255,
    'cascade-mask-rcnn_convnextv1-xl_fpn_in22k-ms-crop-3x_coco': 407,
    'upernet_convnextv1-t_160k_ade20k-512x512': 60,
    'upernet_convnextv1-s_160k_ade20k-512x512': 82,
    'upernet_convnextv1-b_160k_ade20k-512x512': 122,
    'upernet_convnextv1-l_in22k-160k_ade20k-640x640': 235,
    'upernet_convnextv1-xl_in22k-160k_ade20k-640x640': 391,
    'convnextv1-s_supervised_in1k-224': 50,
}


def starts_from_its_size(backbone):
    """Whether the initial weights are published ones of the backbone's size, or those that another leaf trains."""
    if backbone.init_cfg is None:
        return False
    checkpoint = backbone.init_cfg.checkpoint
    recipe = checkpoint.split('/')[1]
    trained_here = any(leaf.stem == recipe and f'-{backbone.arch[0]}_' in recipe for leaf in LEAVES)
    version = 'convnextv2' if backbone.get('response_norm', True) else 'convnext'
    return backbone.init_cfg.type == 'ConvNeXtV2Pretrained' and (
        f'{version}_{backbone.arch}_' in checkpoint or trained_here
    )


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)
def test_leaf_builds(leaf, indexed):
    """The model builds, its heads read the backbone's widths, its size is the published one, the leaf is short. AdamW
    is fused, and steps over 30 groups of parameters at most, except where a classifier's layers decay one by one."""
    assert len(leaf.read_text().splitlines()) <= 25
    cfg = read_leaf(leaf)
    assert starts_from_its_size(cfg.model.backbone) or '_supervised_' in leaf.stem
    assert cfg.auto_scale_lr.base_batch_size > 0
    cfg.model.backbone.init_cfg = None
    import_scope(cfg)
    init_default_scope(cfg.default_scope)
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in cfg.model:
        cfg.model.data_preprocessor = dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    channels = list(ARCHS[cfg.model.backbone.arch]['channels'])
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert all(group['fused'] for group in optimizer.param_groups)
    assert len(optimizer.param_groups) <= 30 or cfg.optim_wrapper.paramwise_cfg.decay_type == 'layer_wise'
    if cfg.model.type == 'ImageClassifier':
        assert cfg.model.head['in_channels'] == channels[-1]
    else:
        reader = next(cfg.model[name] for name in ('neck', 'panoptic_head', 'decode_head') if name in cfg.model)
        assert list(reader['in_channels']) == [channels[stage] for stage in model.backbone.out_indices]
    count, metadata = (
        sum(parameter.numel() for parameter in model.parameters()),
        indexed[f'configs/{leaf.parent.name}/{leaf.name}']['Metadata'],
    )
    assert (metadata['Parameters'], metadata['Batch Size']) == (count, cfg.auto_scale_lr.base_batch_size)
    loop, key = ('Epochs', 'max_epochs') if 'max_epochs' in cfg.train_cfg else ('Iterations', 'max_iters')
    assert metadata[loop] == cfg.train_cfg[key]
    public = find_model(leaf.stem)
    assert public is None or public.size == cfg.model.backbone.arch
    if leaf.stem in PUBLISHED:
        millions = count / 1e6
        assert abs(millions - PUBLISHED[leaf.stem]) <= max(0.01 * PUBLISHED[leaf.stem], 0.05)
