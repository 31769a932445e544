"""Weights go into and come out of whole models of every framework: loaded last, bit for bit, averaged or not."""

import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from framework_models import SCOPES, build, make_runner
from mmengine.hooks import EMAHook
from small_models import NARROW, settings_of
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import (
    LAYOUTS,
    LICENCE,
    ConvNeXtV2Pretrained,
    extract_state_dict,
    from_canonical,
    load_backbone,
    skip_initial_weights_on_resume,
)
from mmconvnextv2.checkpoint.conversion import Backbone
from mmconvnextv2.checkpoint.convert import convert_file
from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints, load_file
from mmconvnextv2.checkpoint.provenance import describe_provenance


@pytest.fixture(autouse=True)
def installed():
    for name in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(name)


def make(**kwargs):
    model = ConvNeXtV2(NARROW, out_indices=(3,), **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def assert_holds(model, weights):
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


@pytest.mark.parametrize('layout', ['canonical', *LAYOUTS])
@pytest.mark.parametrize('kind', SCOPES)
def test_loaded_last_and_bit_for_bit(tmp_path, kind, layout):
    """After init_weights of a whole model with an initializer of its own for all layers, the backbone holds the bits of
    a file of any layout, and output norms that the file does not have are ones and zeros."""
    weights = make(out_norm=False, **settings_of(layout)).state_dict()
    torch.save(from_canonical(weights, layout), tmp_path / 'weights.pth')
    start = dict(type='ConvNeXtV2Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    model = build(kind, init_cfg=start, **settings_of(layout))
    model.init_cfg = dict(type='Constant', layer=['Conv2d', 'Linear'], val=0.5)
    model.init_weights()
    assert_holds(model.backbone, weights)
    fresh = {name: value for name, value in model.backbone.state_dict().items() if name.startswith('norm')}
    assert all(torch.equal(value, torch.full_like(value, name.endswith('weight'))) for name, value in fresh.items())


@pytest.mark.parametrize('kind', SCOPES)
def test_moving_averages_of_mmengine(tmp_path, kind):
    """From a checkpoint of mmengine with its EMAHook, whose state_dict holds the average, both the average and the
    trained weights are to be had, in a model and through the converter; the default is the average."""
    runner = make_runner(build(kind), tmp_path, custom_hooks=[dict(type='EMAHook')], experiment_name=f'ema_{kind}')
    runner.train()
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    for model in (runner.model, hook.ema_model.module):
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    runner.save_checkpoint(str(tmp_path), 'both.pth', save_param_scheduler=False, meta=dict(epoch=0, iter=0))
    path = str(tmp_path / 'both.pth')
    raw, ema = runner.model.backbone, hook.ema_model.module.backbone
    assert 'ema_state_dict' in load_file(path)
    for choice, source in (('raw', raw), ('ema', ema), ('default', ema)):
        model = ConvNeXtV2(NARROW, out_indices=source.out_indices, out_norm=source.out_norm)
        load_backbone(model, path, choice)
        assert_holds(model, source.state_dict())
        convert_file(path, str(tmp_path / 'one.pth'), 'canonical', force=True, weights=choice)
        assert_holds(source, load_file(str(tmp_path / 'one.pth'))['state_dict'])


@pytest.mark.parametrize('place, average', [('model', 'model_ema'), ('state_dict', 'state_dict_ema')])
def test_moving_averages_of_the_official_code_and_timm(tmp_path, place, average):
    """Beside each other, as those write them, the default is the trained weights; a file with the average alone, or one
    behind ``module.``, gives the average."""
    raw, ema = make().state_dict(), make().state_dict()
    path, layout = str(tmp_path / 'both.pth'), 'official-dense' if place == 'model' else 'timm'
    foreign = {name: from_canonical(weights, layout) for name, weights in (('raw', raw), ('ema', ema))}
    torch.save(
        {
            place: foreign['raw'],
            average: {f'module.{name}': value for name, value in foreign['ema'].items()},
            'epoch': 3,
        },
        path,
    )
    model = make()
    for init, expected in (
        (ConvNeXtV2Pretrained(path), raw),
        (ConvNeXtV2Pretrained(path, 'raw'), raw),
        (ConvNeXtV2Pretrained(path, weights='ema'), ema),
    ):
        init(model)
        assert_holds(model, expected)
    torch.save({average: foreign['ema']}, path)
    load_backbone(model, path)
    assert_holds(model, ema)
    with pytest.raises(ValueError, match="weights='raw'"):
        load_backbone(model, path, 'raw')
    torch.save({place: foreign['raw']}, path)
    with pytest.raises(ValueError, match="weights='ema': the file holds no moving average"):
        load_backbone(model, path, 'ema')
    with pytest.raises(ValueError, match="weights='best' is unknown"):
        extract_state_dict({}, 'best')


@pytest.mark.parametrize('kind', SCOPES)
def test_resume_needs_no_initial_weights(tmp_path, kind):
    """A whole model resumes from its checkpoint without the file that it once started from, and does not start over
    without it."""
    allow_mmengine_checkpoints()
    first = make_runner(build(kind), tmp_path, experiment_name=f'first_{kind}')
    first.train()
    for parameter in first.model.parameters():
        nn.init.normal_(parameter)
    first.save_checkpoint(str(tmp_path), 'epoch_0.pth', save_param_scheduler=False, meta=dict(epoch=0, iter=0))
    start = dict(type='ConvNeXtV2Pretrained', checkpoint='http://127.0.0.1:9/start.pth')
    resumed = make_runner(
        build(kind, init_cfg=start),
        tmp_path,
        experiment_name=f'resumed_{kind}',
        resume=True,
        load_from=str(tmp_path / 'epoch_0.pth'),
    )
    assert skip_initial_weights_on_resume(resumed)
    resumed.train()
    assert_holds(resumed.model, first.model.state_dict())
    with pytest.raises(ValueError, match='http://127.0.0.1:9/start.pth cannot be downloaded'):
        make_runner(build(kind, init_cfg=start), tmp_path / 'other', experiment_name=f'fresh_{kind}').train()


def capture(function, *arguments):
    """Run a function; return the lines that the package logged."""
    from mmengine.logging import MMLogger

    logger, lines = MMLogger.get_instance('conversion', log_level='INFO'), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    function(*arguments)
    logger.removeHandler(handler)
    return lines


@pytest.mark.parametrize('layout', ['official-dense', 'official-sparse', 'timm', 'canonical'])
def test_one_line_tells_what_was_loaded(tmp_path, layout):
    """One line names the layout, counts what was loaded, and names what is new and what was dropped; the licence of the
    official weights stands in it for official files and no others."""
    source, path = make(out_norm=layout != 'official-sparse'), str(tmp_path / 'file.pth')
    weights = from_canonical(source.state_dict(), layout)
    head = {'official-sparse': 'mask_token', 'timm': 'head.fc.bias', 'official-dense': 'head.bias'}.get(layout)
    torch.save({**weights, **({head: torch.ones(3)} if head else {})}, path)
    (line,) = capture(load_backbone, ConvNeXtV2(NARROW, out_indices=(0, 3)), path)
    fresh, loaded = (4, 66) if layout == 'official-sparse' else (2, 68)
    assert f'{path}: {layout} layout, {loaded} weights loaded, {fresh} newly initialised (norm0.weight' in line
    assert f'{int(bool(head))} dropped ({head or "none"})' in line
    assert ('CC BY-NC' in line) == layout.startswith('official') and 'stem' not in line


def test_log_of_an_adapted_stem_and_of_dropped_norms(tmp_path):
    """Repeating the stem is reported in the same line, and so is an output norm that the model does not have."""
    path = str(tmp_path / 'file.pth')
    torch.save(make().state_dict(), path)
    (line,) = capture(load_backbone, ConvNeXtV2(NARROW, in_channels=5, out_indices=(0,)), path)
    assert 'repeated from 3 to 5 input channels and rescaled' in line and '2 dropped (norm3.weight, norm3.bias)' in line


def test_published_conversions_have_the_licence_too():
    """OpenMMLab's, Hugging Face's and timm's conversions of the official weights are under the same licence."""
    weights = ConvNeXtV2(NARROW).state_dict()

    def licence(path, layout):
        return describe_provenance(path, Backbone(layout, weights, []))

    base = 'https://download.openmmlab.com/mmclassification/v0/'
    openmmlab = base + 'convnext-v2/convnext-v2-atto_3rdparty-fcmae_in1k_20230104-07514db4.pth'
    assert LICENCE in licence(openmmlab, 'canonical')
    hugging_face = 'https://huggingface.co/facebook/convnextv2-tiny-1k-224/resolve/main/a.safetensors'
    assert LICENCE in licence(hugging_face, 'huggingface')
    assert not licence(base + 'convnext/convnext-tiny_3rdparty_32xb128_in1k_20220124-18abde00.pth', 'canonical')
    assert not licence('work_dirs/fcmae/epoch_800.pth', 'canonical')


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_adapted_stem_answers_as_the_files_does(tmp_path, channels):
    """With any number of channels, images whose channels repeat the same grey give what the file's stem gives for
    that grey in three channels: repeated weights are rescaled to keep the response."""
    source = make(out_norm=False)
    kernel = source.downsample_layers[0][0].weight
    kernel.data = kernel.data.mean(1, keepdim=True).expand_as(kernel).contiguous()  # each channel responds the same
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = ConvNeXtV2(NARROW, channels, out_indices=(3,), out_norm=False)
    load_backbone(model, str(tmp_path / 'weights.pth'))
    grey = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(
        model(grey.expand(-1, channels, -1, -1))[0], source(grey.expand(-1, 3, -1, -1))[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_adapted_stem_is_timms(tmp_path, channels):
    """Whatever the kernel, the stem for another number of channels is that of timm's ``adapt_input_conv``; of grey
    images it gives what the file's stem gives for them in colour."""
    from timm.models import adapt_input_conv

    source = make(out_norm=False)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = ConvNeXtV2(NARROW, channels, out_indices=(3,), out_norm=False)
    load_backbone(model, str(tmp_path / 'weights.pth'))
    kernel = source.downsample_layers[0][0].weight
    torch.testing.assert_close(model.downsample_layers[0][0].weight, adapt_input_conv(channels, kernel.detach()))
    if channels == 1:
        grey = torch.randn(1, 1, 32, 32)
        torch.testing.assert_close(model(grey)[0], source(grey.expand(-1, 3, -1, -1))[0], rtol=1e-4, atol=1e-4)


class AttributeDict(dict):
    """Pickles under the name of Lightning's."""


@pytest.mark.parametrize('place', ['model.', 'net.', 'model.backbone.'])
def test_lightning_and_averaged_models(tmp_path, monkeypatch, place):
    """Files of Lightning, with its hyperparameters, and of torch's ``AveragedModel`` start a backbone bit for bit."""
    source = make(out_norm=False)
    AttributeDict.__module__ = 'pytorch_lightning.utilities.parsing'
    for name in ('pytorch_lightning', 'pytorch_lightning.utilities', AttributeDict.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[AttributeDict.__module__].AttributeDict = AttributeDict
    torch.save(
        {
            'pytorch-lightning_version': '2.0',
            'hyper_parameters': AttributeDict(lr=0.1, data=Path('a/b')),
            'state_dict': {place + name: value for name, value in source.state_dict().items()},
        },
        tmp_path / 'lightning.ckpt',
    )
    averaged = torch.optim.swa_utils.AveragedModel(source)
    torch.save(averaged.state_dict(), tmp_path / 'averaged.pth')
    assert load_file(str(tmp_path / 'lightning.ckpt'))['hyper_parameters'] == dict(lr=0.1, data='a/b')
    for name in ('lightning.ckpt', 'averaged.pth'):
        model = make(out_norm=False)
        load_backbone(model, str(tmp_path / name))
        assert_holds(model, source.state_dict())


@pytest.mark.parametrize('kind', SCOPES)
def test_lost_grn_is_an_error_in_every_framework(tmp_path, kind):
    """A file without GRN never starts a model that has it, nor one with GRN a model without it."""
    weights, path = make(out_norm=False).state_dict(), str(tmp_path / 'weights.pth')
    start = dict(type='ConvNeXtV2Pretrained', checkpoint=path)
    torch.save({name: value for name, value in weights.items() if '.grn.' not in name}, path)
    with pytest.raises(ValueError, match=r'10 missing in the file: stages\.0\.0\.grn\.gamma'):
        build(kind, init_cfg=start).init_weights()
    torch.save(weights, path)
    with pytest.raises(ValueError, match=r'10 not in the model: stages\.0\.0\.grn\.gamma'):
        build(kind, init_cfg=start, response_norm=None).init_weights()
