"""Pretrained weights in whole models and runs: loaded last, bit for bit, and never on resume."""
import logging

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import (DIALECTS, from_canonical, load_backbone, skip_initial_weights_on_resume,
                                     to_canonical)
from mmconvnextv2.safe_loading import allow_mmengine_checkpoints

NARROW = dict(depths=(1, 1, 2, 1), channels=(8, 16, 16, 24))


def make(**kwargs):
    model = ConvNeXtV2(NARROW, out_indices=(3, ), **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def save(path, dialect='official-dense', **kwargs):
    weights = make(out_norm=False, **kwargs).state_dict()
    torch.save(dict(model=from_canonical(weights, dialect)), path)
    return weights


class Regressor(BaseModel):
    """A backbone whose mean response learns to be zero."""

    def __init__(self, checkpoint):
        super().__init__()
        self.backbone = MODELS.build(dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3, ), out_norm=False,
                                          init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=str(checkpoint))))

    def forward(self, pictures, mode='loss'):
        return dict(loss=self.backbone(pictures)[0].square().mean())


def run(path, work_dir, epochs, **kwargs):
    model = Regressor(path)
    pictures = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = [dict(pictures=picture) for picture in pictures]
    runner = Runner(
        model, str(work_dir), train_dataloader=torch.utils.data.DataLoader(pictures, batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), cfg=kwargs, experiment_name=f'run{work_dir.name}{epochs}',
        optim_wrapper=OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3)), **kwargs)
    skip_initial_weights_on_resume(runner)
    runner.train()
    return runner


def test_resume_neither_needs_nor_loads_the_initial_weights(tmp_path):
    """A resumed run works with the first file gone and ends as the run that was never stopped; a fresh one needs it."""
    allow_mmengine_checkpoints()
    path = tmp_path / 'start.pth'
    save(path)
    whole = run(path, tmp_path / 'whole', 2)
    run(path, tmp_path / 'parts', 1)
    path.unlink()
    resumed = run(path, tmp_path / 'parts', 2, resume=True)
    assert resumed.iter == 4
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(FileNotFoundError, match='start.pth'):
        run(path, tmp_path / 'fresh', 1, resume=True)  # nothing to resume from: the initial weights are needed


def test_detector_holds_the_files_bits(tmp_path):
    """After init_weights of a whole Mask R-CNN with an initializer of its own, the backbone equals the file."""
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope
    register_all_modules(init_default_scope=False)
    path = tmp_path / 'sparse.pth'
    weights = save(path, 'official-sparse')
    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    start = dict(type='ConvNeXtV2Pretrained', checkpoint=str(path))
    cfg.backbone = dict(type='ConvNeXtV2', arch=NARROW, init_cfg=start)
    cfg.neck.in_channels = list(NARROW['channels'])
    cfg.init_cfg = dict(type='Constant', layer=['Conv2d', 'Linear'], val=0.5)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
        model.init_weights()
    loaded = model.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert torch.equal(loaded['norm1.weight'], torch.ones(16)) and torch.equal(loaded['norm1.bias'], torch.zeros(16))


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_canonical_weights_are_found_inside_models(prefix):
    """Weights under a model's and a wrapper's prefix, beside a head and a decoder, come out as they went in."""
    weights = make(out_norm=False).state_dict()
    inside = {prefix + name: value for name, value in weights.items()}
    if 'backbone' in prefix:
        inside.update({'neck.blocks.0.depthwise_conv.weight': torch.zeros(1), 'head.fc.weight': torch.zeros(1)})
    found = to_canonical(inside)
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize('dialect', ['canonical', *DIALECTS])
def test_partial_files_raise(dialect):
    """One weight less, one more, or one of another shape raises with its canonical name, in every layout."""
    weights = from_canonical(make(out_norm=False).state_dict(), dialect)
    name = next(key for key in weights if 'stages.2' in key and '1' in key.split('.') and key.endswith('norm.weight')
                or 'stages.2' in key and key.endswith(('norm.ln.weight', 'layernorm.weight')))
    with pytest.raises(ValueError, match=r'1 missing in the file: stages\.2\.\d\.norm\.weight'):
        to_canonical({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=r'of a wrong shape: stages\.2\.\d\.norm\.weight \(3,\)'):
        to_canonical({**weights, name: torch.zeros(3)})
    with pytest.raises(ValueError, match='unknown.thing'):
        to_canonical({**weights, 'unknown.thing': torch.zeros(3)})


def test_sparse_file_gives_the_masked_execution(tmp_path):
    """A model loaded from an official sparse file sees visible cells as the model whose weights were written does."""
    source, target = make(out_norm=False), make(out_norm=False)
    torch.save(dict(model=from_canonical(source.state_dict(), 'official-sparse')), tmp_path / 'sparse.pth')
    load_backbone(target, str(tmp_path / 'sparse.pth'))
    pictures, cells = torch.randn(2, 3, 64, 96), torch.tensor([[0, 3, 5], [1, 2, 4]])
    torch.testing.assert_close(target(pictures, cells, 'packed')[0], source(pictures, cells, 'masked')[0])


@pytest.mark.parametrize('dialect', ['official-dense', 'timm'])
def test_log_and_licence(tmp_path, caplog, dialect):
    """One line tells layout, counts and what is new; the licence of official weights is named for official files."""
    save(tmp_path / 'file.pth', dialect)
    with caplog.at_level(logging.INFO, logger='mmengine'):
        load_backbone(ConvNeXtV2(NARROW), str(tmp_path / 'file.pth'))
    line = [record.message for record in caplog.records if 'file.pth' in record.message]
    if line:
        assert f'{dialect} layout' in line[-1] and 'norm0.weight' in line[-1]
        assert ('CC BY-NC' in line[-1]) == (dialect == 'official-dense')


def test_outputs_equal_hugging_faces():
    """With random weights in the Hugging Face layout, outputs and pooled features equal ConvNextV2Model's."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ConvNextV2Config(depths=NARROW['depths'], hidden_sizes=NARROW['channels'])
    theirs, ours = transformers.ConvNextV2Model(config).eval(), make(gap_before_final_norm=True).eval()
    theirs.layernorm.eps = 1e-6  # the config's 1e-12 is for the pooled output alone
    theirs.load_state_dict(from_canonical(ours.state_dict(), 'huggingface'), strict=True)
    pictures = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours(pictures)[0], theirs(pictures).pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('features_only', [False, True])
def test_outputs_equal_timms(features_only):
    """Weights read from a random timm model, plain or features_only, give timm's last map."""
    timm = pytest.importorskip('timm')
    theirs = timm.create_model('convnextv2_atto', num_classes=0, depths=NARROW['depths'], dims=NARROW['channels'],
                               features_only=features_only).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = make(out_norm=False).eval()
    weights = {name: value for name, value in to_canonical(theirs.state_dict()).items() if not name.startswith('norm')}
    ours.load_state_dict(weights, strict=True)
    pictures = torch.randn(2, 3, 64, 96)
    expected = theirs(pictures)[-1] if features_only else theirs.stages(theirs.stem(pictures))
    torch.testing.assert_close(ours(pictures)[0], expected, rtol=1e-5, atol=1e-5)
