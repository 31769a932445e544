"""GRN is added or dropped between pretraining and fine-tuning on purpose alone, and the log warns; other response norms
are carried over whole."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from small_models import NARROW
from torch import nn

from mmconvnextv2 import ConvNeXtV2, ConvNeXtV2Pretrained
from mmconvnextv2.checkpoint import from_canonical

GRN = dict(type='GRN')
OTHERS = [dict(type=kind) for kind in ('LRN', 'BN', 'LN', 'SE', 'CBAM')] + [dict(type='GRN', affine=False)]


def trained(norm=GRN, **kwargs):
    """A backbone as after pretraining: every parameter and running statistic is random."""
    torch.manual_seed(0)
    model = ConvNeXtV2(NARROW, out_indices=(3,), out_norm=False, response_norm=norm, **kwargs).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for buffer in model.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5 if buffer.is_floating_point() else torch.tensor(7))
    return model.eval()


def load(path, norm, grn=None, **kwargs):
    init_cfg = dict(type='ConvNeXtV2Pretrained', checkpoint=str(path), grn=grn)
    model = ConvNeXtV2(NARROW, out_indices=(3,), out_norm=False, response_norm=norm, init_cfg=init_cfg, **kwargs)
    model.double().init_weights()
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def warnings(monkeypatch):
    """Collect what is logged as a warning."""
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(
        logger,
        'handle',
        lambda record: lines.append(record.getMessage()) if record.levelno == logging.WARNING else None,
    )
    return lines


class Identity(nn.Module):
    """In the place of GRN."""

    def forward(self, sites, *args):
        return sites


@pytest.mark.parametrize('layout', ('canonical', 'timm', 'official-sparse'))
def test_dropped_grn_leaves_the_model_without_it(tmp_path, images, warnings, layout):
    """Dropping gives the pretrained model with the identity in the place of GRN, from any layout, and one warning."""
    source = trained()
    torch.save(from_canonical(source.state_dict(), layout), tmp_path / 'weights.pth')
    loaded = load(tmp_path / 'weights.pth', None, 'drop')
    with_grn = source(images)[0]
    for stage in source.stages:
        for block in stage:
            block.grn = Identity()
    assert torch.equal(loaded(images)[0], source(images)[0])
    assert (loaded(images)[0] - with_grn).abs().max() > 1e-3
    assert len(warnings) == 1 and "grn='drop': 10 weights of GRN are left out" in warnings[0]
    assert '10 dropped (stages.0.0.grn.gamma' in warnings[0] and '0 newly initialised' in warnings[0]


@pytest.mark.parametrize('scale', (0.0, 1e-6))
def test_added_grn_starts_as_the_identity(tmp_path, images, warnings, scale):
    """A model with new GRN gives exactly the features of the one that was pretrained without, LayerScale included,
    all its GRN trains, and the log warns once."""
    source = trained(None, layer_scale_init_value=scale)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    loaded = load(tmp_path / 'weights.pth', GRN, 'add', layer_scale_init_value=scale)
    torch.testing.assert_close(loaded(images)[0], source(images)[0], rtol=1e-12, atol=1e-12)
    loaded(images)[0].square().sum().backward()
    assert all(block.grn.gamma.grad.any() and block.grn.beta.grad.any() for stage in loaded.stages for block in stage)
    assert len(warnings) == 1 and "grn='add': 10 weights of GRN were not pretrained and start as the id" in warnings[0]
    assert '10 newly initialised (stages.0.0.grn.gamma' in warnings[0]


@pytest.mark.parametrize('norm', OTHERS, ids=lambda norm: norm['type'])
def test_other_norms_are_carried_over(tmp_path, images, warnings, norm):
    """Weights and running statistics of every norm of the ablations come back bit for bit, without a warning; a model
    of another norm refuses them."""
    source = trained(norm)
    torch.save(
        dict(state_dict={f'backbone.{key}': value for key, value in source.state_dict().items()}),
        tmp_path / 'weights.pth',
    )
    loaded = load(tmp_path / 'weights.pth', norm)
    assert torch.equal(loaded(images)[0], source(images)[0]) and not warnings
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in source.state_dict().items())
    with pytest.raises(ValueError, match="Check arch and response_norm; grn='add' or grn='drop' in init_cfg"):
        load(tmp_path / 'weights.pth', GRN)


@pytest.mark.parametrize(
    'pretrained, norm, grn, message',
    [
        (GRN, None, None, "10 not in the model: stages.0.0.grn.gamma.*grn='drop' in init_cfg changes GRN on purpose"),
        (None, GRN, None, '10 missing in the file: stages.0.0.grn.gamma.*Check arch and response_norm'),
        (GRN, GRN, 'drop', "grn='drop': the file has 10 weights of GRN and the model 10; set response_norm=None"),
        (None, None, 'drop', "grn='drop': the file has 0 .* leave grn out"),
        (GRN, GRN, 'add', "grn='add': the file has 10 weights of GRN and the model 10; .* leave grn out"),
        (None, None, 'add', "grn='add': the file has 0 .*set response_norm=dict\\(type='GRN'\\)"),
        (
            None,
            dict(type='SE'),
            'add',
            "grn='add' changes only GRN, and stages.0.0.grn.mlp.0.weight,.* another response",
        ),
        (
            dict(type='SE'),
            None,
            'drop',
            "grn='drop' changes only GRN, and stages.0.0.grn.mlp.0.weight,.* another resp",
        ),
        (
            None,
            dict(type='GRN', residual=False),
            'add',
            "grn='add' starts as the identity, which stages.0.0.grn.gamma,",
        ),
        (GRN, None, 'remove', "grn='remove' is unknown: choose from .*'drop', 'add'"),
    ],
)
def test_nothing_changes_unasked(tmp_path, pretrained, norm, grn, message):
    """By default file and model must agree about GRN; a change that makes no sense is refused with what to set."""
    torch.save(trained(pretrained).state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'weights.pth', norm, grn)


def test_other_differences_still_raise(tmp_path):
    """Dropping GRN excuses nothing else: a lost weight and a wrong width raise as ever."""
    weights = trained().state_dict()
    del weights['stages.2.1.norm.weight']
    torch.save(weights, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='1 missing in the file: stages.2.1.norm.weight'):
        load(tmp_path / 'weights.pth', None, 'drop')
    torch.save(trained().state_dict(), tmp_path / 'weights.pth')
    init_cfg = dict(type='ConvNeXtV2Pretrained', checkpoint=str(tmp_path / 'weights.pth'), grn='drop')
    wider = ConvNeXtV2(dict(NARROW, channels=(4, 6, 8, 12)), response_norm=None, init_cfg=init_cfg)
    with pytest.raises(ValueError, match='of a wrong shape'):
        wider.init_weights()


def test_unknown_change_is_refused_when_built():
    """The initializer itself refuses an unknown change, before any file is read."""
    with pytest.raises(ValueError, match="grn='yes' is unknown"):
        ConvNeXtV2Pretrained('weights.pth', grn='yes')
