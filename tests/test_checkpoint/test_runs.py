"""Pretrained weights in whole models and runs: loaded last, bit for bit, and never on resume."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from small_models import NARROW, settings_of
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import LAYOUTS, from_canonical, skip_initial_weights_on_resume, to_canonical
from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints


def make(**kwargs):
    model = ConvNeXtV2(NARROW, out_indices=(3,), **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def save(path, layout='official-dense', **kwargs):
    weights = make(out_norm=False, **kwargs).state_dict()
    torch.save(dict(model=from_canonical(weights, layout)), path)
    return weights


class Regressor(BaseModel):
    """A backbone whose mean response learns to be zero."""

    def __init__(self, checkpoint):
        super().__init__()
        self.backbone = MODELS.build(
            dict(
                type='ConvNeXtV2',
                arch=NARROW,
                out_indices=(3,),
                out_norm=False,
                init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=str(checkpoint)),
            )
        )

    def forward(self, images, mode='loss'):
        return dict(loss=self.backbone(images)[0].square().mean())


def run(path, work_dir, epochs, **kwargs):
    model = Regressor(path)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = [dict(images=image) for image in images]
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=torch.utils.data.DataLoader(images, batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        cfg=kwargs,
        experiment_name=f'run{work_dir.name}{epochs}',
        optim_wrapper=OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3)),
        **kwargs,
    )
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


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_canonical_weights_are_found_inside_models(prefix):
    """Weights under a model's and a wrapper's prefix, next to a head and a decoder, come out as they went in."""
    weights = make(out_norm=False).state_dict()
    inside = {prefix + name: value for name, value in weights.items()}
    if 'backbone' in prefix:
        inside.update({'neck.blocks.0.depthwise_conv.weight': torch.zeros(1), 'head.fc.weight': torch.zeros(1)})
    found = to_canonical(inside)
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize('layout', ['canonical', *LAYOUTS])
def test_partial_files_raise(layout):
    """One weight less, one more, or one of another shape raises with its canonical name, in every layout."""
    weights = from_canonical(make(out_norm=False, **settings_of(layout)).state_dict(), layout)
    name = next(
        key
        for key in weights
        if 'stages.2' in key
        and '1' in key.split('.')
        and key.endswith('norm.weight')
        or 'stages.2' in key
        and key.endswith(('norm.ln.weight', 'layernorm.weight', 'layer_norm.weight'))
    )
    with pytest.raises(ValueError, match=r'1 missing in the file: stages\.2\.\d\.norm\.weight'):
        to_canonical({key: value for key, value in weights.items() if key != name})
    with pytest.raises(ValueError, match=r'of a wrong shape: stages\.2\.\d\.norm\.weight \(3,\)'):
        to_canonical({**weights, name: torch.zeros(3)})
    with pytest.raises(ValueError, match='unknown.thing'):
        to_canonical({**weights, 'unknown.thing': torch.zeros(3)})
