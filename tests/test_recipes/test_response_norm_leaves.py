"""The paper's response-norm tables: one leaf per row, each builds, differs in what it says, and trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.models.convnext_v2 import ARCHS
from mmconvnextv2.pretrain import FCMAEMaskGenerator

CONFIGS = Path(__file__).parents[2] / 'configs'
RECIPE = CONFIGS / 'fcmae' / 'fcmae_convnextv2-b_64xb64-800e_in1k.py'
ARCH = dict(depths=(1, 1, 1, 1), channels=(16, 16, 24, 32))  # SE's bottleneck has a sixteenth of 4C channels
ROWS = {  # the norm, and the published top-1 that the leaf quotes next to the 84.6 of GRN
    'grn-average': (dict(type='GRN', aggregation='average'), '83.7'),
    'grn-l1': (dict(type='GRN', aggregation='L1'), '84.3'),
    'grn-standardize': (dict(type='GRN', normalization='standardize'), '84.5'),
    'grn-inverse-sum': (dict(type='GRN', normalization='1/sum'), '83.8'),
    'grn-no-residual': (dict(type='GRN', residual=False), '84.0'),
    'grn-unnormalized': (dict(type='GRN', normalization='none'), '83.9'),
    'grn-unaggregated': (dict(type='GRN', aggregation='none'), 'unstable'),
    'lrn': (dict(type='LRN'), '83.2'),
    'bn': (dict(type='BN'), '80.5'),
    'ln': (dict(type='LN'), '83.8'),
    'se': (dict(type='SE'), '84.4'),
    'cbam': (dict(type='CBAM'), '84.5'),
    'no-norm': (None, '83.9'),
}
ROLES = {  # norm, LayerScale, change of GRN, published top-1
    'convnextv2-b_grn-dropped': (None, 0.0, 'drop', '78.8'),
    'convnextv2-b_grn-added': (dict(type='GRN'), 1e-6, 'add', '80.6'),
    'convnextv1-b': (None, 1e-6, None, '83.7'),
}


def pretraining_leaf(row):
    return CONFIGS / 'ablations' / f'fcmae_convnextv2-b_{row}_64xb64-800e_in1k.py'


def role_leaf(role):
    return CONFIGS / 'ablations' / f'{role}_fcmae-ft_in1k-224.py'


def norm_of(model):
    """Parameters and settings of the last block's norm, as text."""
    return str(model.stages[3][0].grn)


def test_every_row_has_a_leaf_and_a_line():
    """There is one leaf for each row of tables 2 and 16 and no other, each quotes its number, and each is listed with
    it in the table of recipes."""
    leaves = {
        **{pretraining_leaf(row): number for row, (_, number) in ROWS.items()},
        **{role_leaf(role): number for role, (*_, number) in ROLES.items()},
    }
    v1 = set((CONFIGS / 'ablations').glob('fcmae_convnextv1-b_*.py'))
    assert set((CONFIGS / 'ablations').glob('*.py')) - v1 == set(leaves)
    listed = (CONFIGS / 'README.md').read_text().splitlines()
    for leaf, number in leaves.items():
        head = leaf.read_text().split('_base_')[0]
        assert 'arXiv 2301.00808, table' in head and number in head and len(leaf.read_text().splitlines()) <= 25
        assert any(f'(ablations/{leaf.name})' in line and number in line for line in listed), leaf.name


@pytest.mark.parametrize('row', ROWS)
def test_row_differs_in_its_norm_alone(row):
    """Encoder and decoder of V2-Base have the norm of the row; all the rest is the FCMAE recipe."""
    cfg, recipe = Config.fromfile(str(pretraining_leaf(row))), Config.fromfile(str(RECIPE))
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        expected = ConvNeXtV2('base', response_norm=ROWS[row][0])
    assert model.backbone.channels == ARCHS['base']['channels'] and model.backbone.depths == ARCHS['base']['depths']
    assert norm_of(model.backbone) == norm_of(expected)
    assert cfg.model.neck.pop('response_norm') == cfg.model.backbone.pop('response_norm') == ROWS[row][0]
    del cfg._cfg_dict['response_norm']
    assert cfg._cfg_dict == recipe._cfg_dict


@pytest.mark.parametrize('row', ROWS)
def test_narrow_row_trains_a_step(row):
    """A narrow copy makes a step of FCMAE in which every parameter has a finite gradient that is not all zero."""
    cfg = Config.fromfile(str(pretraining_leaf(row)))
    cfg.model.backbone.arch, cfg.model.neck.channels = ARCH, 16
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).double().train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    cells = FCMAEMaskGenerator(0.6)
    samples = [DataSample(metainfo=cells.transform(dict(img=np.zeros((64, 96, 3))))) for _ in range(2)]
    model.loss(torch.randn(2, 3, 64, 96, dtype=torch.float64), samples)['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize('role', ROLES)
def test_role_of_grn(role):
    """A fine-tuning leaf of table 2f builds, and asks the loader for the change of its row from the right pretraining;
    all the rest is the fine-tuning recipe."""
    norm, scale, change, _ = ROLES[role]
    cfg = Config.fromfile(str(role_leaf(role)))
    recipe = Config.fromfile(str(CONFIGS / 'classification' / 'convnextv2-b_fcmae-ft_in1k-224.py'))
    init_cfg = cfg.model.backbone.pop('init_cfg')
    pretraining = CONFIGS / ('ablations' if role != 'convnextv2-b_grn-dropped' else 'fcmae')
    assert init_cfg.get('grn') == change
    assert init_cfg.checkpoint.endswith('/epoch_800.pth')
    assert (pretraining / f'{init_cfg.checkpoint.split("/")[1]}.py').is_file()
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model).backbone
    assert norm_of(backbone) == norm_of(ConvNeXtV2(ARCH, response_norm=norm))
    assert (backbone.stages[3][0].gamma is not None) == bool(scale)
    for key in ('response_norm', 'layer_scale_init_value'):
        cfg.model.backbone.pop(key, None)
    del cfg._cfg_dict['pretrained'], recipe.model.backbone['init_cfg']
    assert cfg._cfg_dict == recipe._cfg_dict
