"""Backbones equal the models of the repositories that their weights come from, run on those repositories' own code.

``nox -s foreign`` clones the repositories at fixed commits, installs a transformers that has DINOv3, and runs this
file; ``UPSTREAM_CODE`` is the folder with the clones. Nothing of their code is in this repository, only the names and
shapes of the weights of narrow models, in ``tests/test_checkpoint/upstream``, which the suite reads.
``WRITE_NAMES=1`` writes them again.
"""

import importlib
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from small_models import NARROW, V1
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import extract_state_dict, from_canonical, read_backbone
from mmconvnextv2.checkpoint.cross_check import run
from mmconvnextv2.models.execution.minkowski import import_minkowski_engine

CODE = Path(os.environ['UPSTREAM_CODE'])
DEPTHS, CHANNELS = list(NARROW['depths']), list(NARROW['channels'])
NAMES = Path(__file__).parent / 'test_checkpoint' / 'upstream'


def import_from(folder, name, package=None):
    """Import a module of a clone, as part of a package made for it, or as a top-level module."""
    if package is None:
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(folder))
    parent = sys.modules.setdefault(package, types.ModuleType(package))
    parent.__path__ = [str(folder)]
    return importlib.import_module(f'{package}.{name}')


def randomise(model):
    """Give every parameter random values of a sensible size."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        nn.init.normal_(parameter, std=fan**-0.5)
        if 'norm' in name and name.endswith('weight'):
            parameter.data += 1
    return model.eval()


def check_names(name, weights):
    """Compare names and shapes of a model's weights with those that the suite knows."""
    lines = [f'{key} {tuple(value.shape)}' for key, value in weights.items() if isinstance(value, torch.Tensor)]
    path = NAMES / f'{name}.txt'
    if os.environ.get('WRITE_NAMES'):
        path.write_text('\n'.join(lines) + '\n')
    assert path.read_text().splitlines() == lines


def ours(weights, **kwargs):
    """Our backbone with the weights of a file, all of which it has, and the layout of the file."""
    found = read_backbone(weights)
    stages = tuple(stage for stage in range(4) if f'norm{stage}.weight' in found.weights)
    model = ConvNeXtV2(NARROW, out_indices=stages or (3,), out_norm=bool(stages), **kwargs).eval()
    model.load_state_dict(found.weights)
    return model, found.layout


def without_norms(model):
    """The same backbone, returning the four maps before any output norm."""
    model.out_norm, model.out_indices = False, (0, 1, 2, 3)
    return model


def assert_same(found, expected):
    """Compare to 1e-5 of the largest value, and print the difference."""
    difference = (found - expected).abs().max().item() / expected.abs().max().item()
    print(f'difference {difference:.1e}')
    assert difference <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize('name', ['dinov3', 'eupe'])
def test_dinov3_and_eupe(name):
    """get_intermediate_layers(norm=True) of the four stages gives our four maps: the first three have no norm there."""
    module = import_from(CODE / name / name / 'models', 'convnext', f'{name}_models')
    theirs = randomise(module.ConvNeXt(depths=DEPTHS, dims=CHANNELS, layer_scale_init_value=0.5))
    weights, images = theirs.state_dict(), torch.randn(2, 3, 64, 96)
    check_names('dinov3', weights)
    model, layout = ours(weights, **V1)
    assert layout == 'dinov3'
    assert {key: value.shape for key, value in from_canonical(model.state_dict(), layout).items()} == {
        key: value.shape for key, value in weights.items()
    }
    (last,) = model(images)
    maps = theirs.get_intermediate_layers(images, n=range(4), reshape=True)
    assert_same(last, maps[3])
    for one, other in zip(without_norms(model)(images)[:3], maps[:3]):
        assert_same(one, other)


@torch.no_grad()
def test_dinov3_of_hugging_face():
    """hidden_states of DINOv3ConvNextModel are our maps without norm, its tokens our last map with norm."""
    transformers = pytest.importorskip('transformers', '4.56')
    config = transformers.DINOv3ConvNextConfig(depths=DEPTHS, hidden_sizes=CHANNELS)
    theirs = randomise(transformers.DINOv3ConvNextModel(config))
    release = transformers.__version__.partition('.')[0]
    check_names(f'huggingface-dinov3-{release}', theirs.state_dict())
    model, layout = ours(theirs.state_dict(), **V1)
    assert layout == 'huggingface-dinov3'
    images = torch.randn(2, 3, 64, 96)
    outputs = theirs(images, output_hidden_states=True)
    (last,) = model(images)
    assert_same(last.flatten(2).transpose(1, 2), outputs.last_hidden_state[:, 1:])
    checked = run(theirs.state_dict(), images)
    assert checked.library.startswith('transformers ')
    assert_same(checked.pooled, outputs.pooler_output)
    assert_same(checked.last_map, outputs.hidden_states[-1])
    for one, other in zip(without_norms(model)(images), outputs.hidden_states[-4:], strict=True):
        assert_same(one, other)


@torch.no_grad()
@pytest.mark.parametrize('patch_size', [8, 16, 32])
def test_mmearth(patch_size):
    """MMEarth's dense model gives our pooled features with its padding and its GRN's epsilon."""
    module = import_from(CODE / 'mmearth' / 'models', 'convnextv2', 'mmearth_models')
    theirs = randomise(module.ConvNeXtV2(patch_size=patch_size, in_chans=12, depths=DEPTHS, dims=CHANNELS))
    weights, images = theirs.state_dict(), torch.randn(2, 12, 112, 112)
    if patch_size == 16:
        check_names('mmearth-dense', weights)
    stem = dict(type='ConvStem', stride=patch_size // 8, padding='valid')
    model, layout = ours(
        weights, in_channels=12, stem=stem, response_norm=dict(type='GRN', eps=1e-4), gap_before_final_norm=True
    )
    assert layout == 'mmearth-dense'
    assert_same(model(images)[0], theirs.forward_features(images))


def test_mmearth_renames_its_pretraining_weights_alike():
    """MMEarth's own conversion of a sparse file gives the same dense weights as ours, bit for bit."""
    helpers = (CODE / 'mmearth' / 'helpers.py').read_text()
    start = helpers.index('def remap_checkpoint_keys')
    scope = dict(OrderedDict=dict, math=__import__('math'))
    exec(helpers[start : helpers.index('\ndef ', start)], scope)  # the module imports what is not installed
    model = randomise(ConvNeXtV2(NARROW, 12, out_norm=False, stem=dict(type='ConvStem', stride=2)))
    dense = from_canonical(model.state_dict(), 'mmearth-dense')
    remapped = scope['remap_checkpoint_keys'](from_canonical(model.state_dict(), 'mmearth'))
    assert set(remapped) == set(dense)
    assert all(torch.equal(remapped[name].squeeze(), value.squeeze()) for name, value in dense.items())


@torch.no_grad()
def test_spark(monkeypatch):
    """SparK's sparse encoder gives our four maps from its training checkpoint and from its released kind of file, with
    all cells visible and with some masked."""
    # It registers its models under timm's names, and its utilities need packages that its models do not
    monkeypatch.setattr('timm.models.registry.register_model', lambda function: function)
    monkeypatch.setitem(sys.modules, 'utils', types.ModuleType('utils'))
    monkeypatch.setitem(sys.modules, 'utils.misc', types.ModuleType('utils.misc'))
    sys.modules['utils.misc'].is_pow2n = lambda number: number & (number - 1) == 0
    encoder = import_from(CODE / 'spark' / 'pretrain', 'encoder')
    module = import_from(CODE / 'spark' / 'pretrain' / 'models', 'convnext')
    cnn = module.ConvNeXt(depths=DEPTHS, dims=list(CHANNELS), num_classes=0, layer_scale_init_value=0.5)
    decoder = import_from(CODE / 'spark' / 'pretrain', 'decoder').LightDecoder(32, 32, sbn=False)
    whole = import_from(CODE / 'spark' / 'pretrain', 'spark').SparK(encoder.SparseEncoder(cnn, 96), decoder)
    theirs = randomise(whole).sparse_encoder
    check_names('spark', whole.state_dict(with_config=True))
    images, visible = torch.randn(2, 3, 96, 96), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    training = dict(module=whole.state_dict(with_config=True), optimizer={}, epoch=0)
    for content, expected in ((theirs.sp_cnn.state_dict(), 'official-dense'), (training, 'spark')):
        model, layout = ours(extract_state_dict(content), **V1)
        assert layout == expected
        encoder._cur_active = visible
        for one, other in zip(without_norms(model)(images), theirs(images), strict=True):
            assert_same(one, other)
    visible.view(2, 9)[:, 4:] = False
    encoder._cur_active = visible
    masked = images * visible.repeat_interleave(32, 2).repeat_interleave(32, 3)
    cells = torch.arange(4).expand(2, 4)
    for one, other in zip(model(images, cells, 'masked'), theirs(masked), strict=True):
        assert_same(one, other)


@torch.no_grad()
@pytest.mark.parametrize('kind, proj', [('CLIP', 'linear'), ('CLIP', 'mlp'), ('CustomTextCLIP', 'linear')])
def test_openclip(kind, proj):
    """The trunk of OpenCLIP's image tower gives our last map and pooled features from the file of the whole model."""
    module = import_from(CODE / 'open_clip' / 'src' / 'open_clip', 'model', 'openclip_code')
    vision = module.CLIPVisionCfg(
        timm_model_name='convnext_base',
        timm_model_kwargs=dict(depths=DEPTHS, dims=CHANNELS),
        timm_pool='',
        timm_proj=proj,
        image_size=64,
    )
    text = module.CLIPTextCfg(context_length=5, vocab_size=7, width=8, heads=2, layers=1)
    whole = randomise(getattr(module, kind)(12, vision, text))
    weights, images = whole.state_dict(), torch.randn(2, 3, 64, 96)
    check_names(f'openclip-{kind}-{proj}', weights)
    model, layout = ours(weights, **V1)
    assert layout == 'openclip'
    model.gap_before_final_norm = True
    trunk = whole.visual.trunk
    assert_same(model(images)[0], trunk.forward_head(trunk.forward_features(images), pre_logits=True))
    model.gap_before_final_norm = False
    assert_same(without_norms(model)(images)[3], trunk.forward_features(images))


@torch.no_grad()
@pytest.mark.parametrize('patch_size', [8, 16])
def test_mmearth_pretraining(monkeypatch, patch_size):
    """MMEarth's sparse encoder, on MinkowskiEngine with all cells visible, gives our last map with the default padding
    and GRN; one image, since its GRN sums over the batch."""
    pytest.importorskip('MinkowskiEngineBackend')
    engine = import_minkowski_engine()
    # Its fork of MinkowskiEngine has this name for what 0.5.4 calls channelwise; kernels and biases are the same
    monkeypatch.setattr(engine, 'MinkowskiDepthwiseConvolution', engine.MinkowskiChannelwiseConvolution, raising=False)
    module = import_from(CODE / 'mmearth' / 'models', 'convnextv2_sparse', 'mmearth_models')
    theirs = randomise(module.SparseConvNeXtV2(patch_size, 64, 12, depths=DEPTHS, dims=CHANNELS, D=2))
    images = torch.randn(1, 12, 64, 64)
    weights = {f'encoder.{name}': value for name, value in theirs.state_dict().items()}
    weights |= {'mask_token': torch.ones(1, 8, 1, 1), 'loss_fn.log_vars': torch.ones(2)}
    check_names(f'mmearth-{patch_size}', weights)
    model, layout = ours(weights, in_channels=12, stem=dict(type='ConvStem', stride=patch_size // 8))
    assert layout == 'mmearth'
    assert_same(model(images)[0], theirs(images.clone(), torch.zeros(1, (64 // patch_size) ** 2)))
