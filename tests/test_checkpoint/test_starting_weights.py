"""Weights of DINOv3, EUPE, MMEarth, OpenCLIP, SparK, timm and Hugging Face start a backbone, and say what they are.

``upstream`` holds names and shapes of the weights of narrow models of those repositories, which ``nox -s foreign``
compares with their code.
"""

import logging
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.logging import MMLogger
from small_models import MMEARTH, NARROW, V1
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import (
    DISTRIBUTIONS,
    classifier_to_canonical,
    find_distribution,
    from_canonical,
    load_backbone,
    read_backbone,
    to_canonical,
)
from mmconvnextv2.checkpoint.conversion import Backbone

FILES = sorted(path.stem for path in (Path(__file__).parent / 'upstream').glob('*.txt'))
DROPPED = {  # the first words of what a file holds beside its backbone
    'dinov3': {'norms'},
    'mmearth': {'mask_token', 'loss_fn'},
    'mmearth-dense': {'head'},
    'openclip': {
        *('positional_embedding', 'text_projection', 'logit_scale', 'transformer', 'token_embedding', 'ln_final'),
        *('visual.head', 'text'),
    },
    'spark': {'imn_m', 'imn_s', 'norm_black', 'dense_decoder', 'densify_norms', 'densify_projs', 'mask_tokens'},
}


def weights_of(name):
    """Random weights with the names and shapes of a file in ``upstream``, repeated where the model repeats them."""
    torch.manual_seed(0)
    lines = (Path(__file__).parent / 'upstream' / f'{name}.txt').read_text().splitlines()
    weights = {}
    for line in lines:
        key, _, shape = line.partition(' ')
        weights[key] = torch.randn([int(size) for size in re.findall(r'\d+', shape)])
    return {key: weights[re.sub(r'^norms\.3\.', 'norm.', key)] for key in weights}


def randomise(model):
    """Give every parameter random values of a sensible size."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        nn.init.normal_(parameter, std=fan**-0.5)
        if 'norm' in name and name.endswith('weight'):
            parameter.data += 1
    return model.eval()


@pytest.mark.parametrize('name', FILES)
def test_upstream_names(name):
    """Every weight of a model of the repository is read strictly or dropped on purpose, and written under its name."""
    weights = weights_of(name)
    found = read_backbone(weights)
    assert name.startswith(found.layout)
    is_mmearth = found.layout.startswith('mmearth')
    settings = {**MMEARTH, 'stem': dict(type='ConvStem', stride=1 if name == 'mmearth-8' else 2)} if is_mmearth else V1
    norms = [key for key in found.weights if key.startswith('norm')]
    model = ConvNeXtV2(NARROW, out_indices=(3,), out_norm=bool(norms), **settings)
    model.load_state_dict(found.weights)
    known = DROPPED.get(found.layout, set())
    assert all(any(key == word or key.startswith(f'{word}.') for word in known) for key in found.dropped)
    written = from_canonical(model.state_dict(), found.layout)
    kept = {key for key in weights if key not in found.dropped or key.startswith('norms.3.')}
    assert {key.removeprefix('model.') for key in kept} == set(written)
    assert all(torch.equal(written[key.removeprefix('model.')].flatten(), weights[key].flatten()) for key in kept)
    lost = next(key for key in kept if 'stages.2' in key and key.endswith(('norm.bias', 'norm.ln.bias')))
    with pytest.raises(ValueError, match='1 missing in the file: stages.2'):
        to_canonical({key: value for key, value in weights.items() if key != lost})


def test_depthwise_stem_kernels_keep_their_rows():
    """Row kw * s + kh of MMEarth's sparse depthwise kernel becomes row kh, column kw of ours."""
    weights = weights_of('mmearth-16')
    kernel = to_canonical(weights)['downsample_layers.0.3.weight']
    rows = weights['encoder.stem.0.kernel']
    assert all(torch.equal(kernel[:, 0, kh, kw], rows[kw * 2 + kh]) for kh in (0, 1) for kw in (0, 1))


def test_the_repeated_norm_of_dinov3():
    """DINOv3's second copy of its norm must equal the first, and EUPE's projectors are left out."""
    weights = weights_of('dinov3')
    found = read_backbone({**weights, 'projectors.0.weight': torch.ones(2)})
    assert (found.layout, found.dropped) == ('dinov3', ['norms.3.weight', 'norms.3.bias', 'projectors.0.weight'])
    with pytest.raises(ValueError, match=r'norms.3.bias and norm.bias are one weight in the dinov3 layout, and differ'):
        to_canonical({**weights, 'norms.3.bias': weights['norm.bias'] + 1})
    with pytest.raises(ValueError, match='norms.3.weight repeats norm.weight in the dinov3 layout: one of them'):
        to_canonical({key: value for key, value in weights.items() if key != 'norm.weight'})


@pytest.mark.parametrize(
    'name, settings',
    [
        ('convnext_tiny', {}),  # also what timm's files of DINOv3 and EUPE hold, which have no class
        ('convnext_atto', {}),
        ('convnext_tiny_hnf', {}),
        ('convnext_large_mlp', {}),
        ('convnext_xxlarge', dict(norm_eps=1e-5)),
    ],
)
@torch.no_grad()
def test_outputs_of_timms_v1(name, settings):
    """timm's ConvNeXt V1, its variants for CLIP among them, gives our four maps and normalised last map from its file;
    depthwise responses are faint, so that another constant in LayerNorm would show."""
    theirs = randomise(timm.create_model(name, num_classes=3, depths=NARROW['depths'], dims=NARROW['channels']))
    for parameter_name, parameter in theirs.named_parameters():
        parameter.mul_(1e-2 if 'conv_dw' in parameter_name else 1)
    found = read_backbone(theirs.state_dict())
    ours = ConvNeXtV2(NARROW, out_indices=(3,), **V1, **settings).eval()
    ours.load_state_dict(found.weights)
    images = torch.randn(2, 3, 64, 96)
    _, maps = theirs.forward_intermediates(images)
    norm = theirs.norm_pre if hasattr(theirs.norm_pre, 'weight') else theirs.head.norm
    torch.testing.assert_close(ours(images)[0], norm(maps[3]), rtol=0, atol=1e-5)
    ours.out_norm, ours.out_indices = False, (0, 1, 2, 3)
    for one, other in zip(ours(images), maps, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize('name, layer', [('convnext_large_mlp', 'head.pre_logits'), ('convnext_tiny_hnf', 'norm_pre')])
def test_other_heads_are_no_classifiers(name, layer):
    """A head with a hidden layer, and a norm before pooling, do not become a linear classifier."""
    model = timm.create_model(name, num_classes=3, depths=NARROW['depths'], dims=NARROW['channels'])
    with pytest.raises(ValueError, match=f'other layers than a norm after pooling and head.fc: {layer}.*its backbone'):
        classifier_to_canonical(model.state_dict())


@torch.no_grad()
def test_outputs_of_hugging_faces_v1():
    """ConvNextModel gives our last map, and our pooled features, from the file of a whole classifier."""
    transformers = pytest.importorskip('transformers')
    config = transformers.ConvNextConfig(
        depths=list(NARROW['depths']), hidden_sizes=list(NARROW['channels']), layer_norm_eps=1e-6
    )
    theirs = randomise(transformers.ConvNextForImageClassification(config))
    assert 'convnext.encoder.stages.0.layers.0.layer_scale_parameter' in theirs.state_dict()
    found = read_backbone(theirs.state_dict())
    assert (found.layout, found.dropped) == ('huggingface', ['classifier.weight', 'classifier.bias'])
    ours = ConvNeXtV2(NARROW, out_indices=(3,), gap_before_final_norm=True, **V1).eval()
    ours.load_state_dict(found.weights)
    images = torch.randn(2, 3, 64, 96)
    outputs = theirs.convnext(images)
    torch.testing.assert_close(ours(images)[0], outputs.pooler_output, rtol=0, atol=1e-5)
    ours.out_norm = ours.gap_before_final_norm = False
    expected = outputs.last_hidden_state
    torch.testing.assert_close(ours(images)[0], expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def mmearth_stem(weights, images, stride, padding):
    """MMEarth's stem by its formula, in float64: a 3x3 convolution, and each channel's own s x s one, normalised."""
    first, second = (1, 0) if padding == 'same' else (0, stride // 2)
    stem = {key.removeprefix('downsample_layers.0.'): value for key, value in weights.items()}

    def normalise(features, layer):
        centred = features - features.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * stem[f'{layer}.weight'].view(1, -1, 1, 1) + stem[f'{layer}.bias'].view(1, -1, 1, 1)

    pixels = normalise(F.conv2d(images, stem['0.weight'], stem['0.bias'], padding=first), 1)
    pixels = pixels * (1 + torch.erf(pixels / 2**0.5)) / 2
    channels = [
        F.conv2d(pixels[:, [channel]], stem['3.weight'][[channel]], stem['3.bias'][[channel]], stride, second)
        for channel in range(pixels.shape[1])
    ]
    return normalise(torch.cat(channels, 1), 4)


@pytest.mark.parametrize('padding', ['same', 'valid'])
@pytest.mark.parametrize('stride', [1, 2, 4])
@torch.no_grad()
def test_mmearths_stem(stride, padding):
    """The stem of MMEarth equals its formula, and its grid its stride; sides that are not multiples of it are cut."""
    stem = dict(type='ConvStem', stride=stride, padding=padding)
    model = randomise(ConvNeXtV2(NARROW, 12, out_indices=(0,), out_norm=False, stem=stem).double())
    images = torch.randn(2, 12, 37, 43, dtype=torch.float64)
    expected = mmearth_stem(model.state_dict(), images, stride, padding)
    model.stages[0] = nn.Identity()
    model.stages[0].forward = lambda sites, grid, *others: seen.append(grid) or sites
    seen = []
    torch.testing.assert_close(model(images)[0], expected, rtol=1e-10, atol=1e-10)
    assert seen[0].stride == stride


def test_bad_stems_are_refused():
    """Masking needs the padding of pretraining, and unknown stems, arguments and strides are refused."""
    model = ConvNeXtV2(NARROW, out_indices=(3,), stem=dict(type='ConvStem', padding='valid'))
    with pytest.raises(ValueError, match="stem.padding='valid' moves pixels across cells: pretrain with .*'same'"):
        model(torch.randn(1, 3, 64, 64), torch.tensor([[0, 1]]))
    for stem, message in (
        (dict(type='Patches'), "stem=dict.type='Patches'. is unknown: choose from .'ConvStem', 'PatchStem'., or None"),
        (dict(type='ConvStem', side=2), "does not know side: choose from .'stride', 'padding'."),
        (dict(type='ConvStem', stride=0), 'stem.stride=0: expected a positive integer'),
        (dict(type='ConvStem', padding='full'), "stem.padding='full' is unknown: choose from .'same', 'valid'."),
    ):
        with pytest.raises(ValueError, match=message):
            ConvNeXtV2(NARROW, stem=stem)


def test_norm_eps_leaves_response_norms_alone():
    """norm_eps is the constant of every LayerNorm but of a response norm, which has its own."""
    model = ConvNeXtV2(NARROW, response_norm=dict(type='LN', eps=1e-3), norm_eps=1e-5)
    found = {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(found) == 1 + 3 + 5 + 5 + 4
    assert found == {name: 1e-3 if name.endswith('.grn') else 1e-5 for name in found}


@pytest.mark.parametrize(
    'file, model, advice',
    [
        (V1, {}, 'V1: set model.backbone.response_norm=None model.backbone.layer_scale_init_value=1e-6.'),
        (
            {},
            V1,
            'V2: leave response_norm and layer_scale_init_value out, or set model.backbone.response_norm._delete_=True '
            'model.backbone.response_norm.type=GRN model.backbone.layer_scale_init_value=0.',
        ),
        (
            MMEARTH,
            {},
            'set model.backbone.stem.type=ConvStem model.backbone.stem.stride=2 model.backbone.in_channels=12.',
        ),
        (
            MMEARTH,
            {**MMEARTH, 'stem': dict(type='ConvStem', stride=1)},
            'set model.backbone.stem.type=ConvStem model.backbone.stem.stride=2 model.backbone.in_channels=12.',
        ),
        ({}, MMEARTH, 'The file has the stem of 4x4 patches: set model.backbone.stem=None.'),
    ],
)
def test_the_error_gives_the_overrides(tmp_path, file, model, advice):
    """Weights of another kind of ConvNeXt are refused with the overrides of a config that fit it, which then work."""
    from mmengine.config import Config, DictAction

    path = str(tmp_path / 'file.pth')
    torch.save(ConvNeXtV2(NARROW, out_norm=False, **file).state_dict(), path)
    with pytest.raises(ValueError) as error:
        load_backbone(ConvNeXtV2(NARROW, **model), path)
    assert str(error.value).endswith(advice)
    cfg = Config(dict(model=dict(backbone=dict(arch=NARROW, **model))))
    for override in re.findall(r'(model\.\S+)=(\S+?)\.?(?=\s|$)', advice):
        cfg.merge_from_dict({override[0]: DictAction._parse_iterable(override[1])})
    load_backbone(ConvNeXtV2(**cfg.model.backbone), path)


@pytest.mark.parametrize(
    'layout, settings, address, name, words',
    [
        ('dinov3', V1, 'dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth', 'DINOv3', 'DINOv3 License'),
        ('timm', V1, 'timm/convnext_tiny.dinov3_lvd1689m/model.safetensors', 'DINOv3', "ImageNet's mean"),
        ('huggingface-dinov3', V1, 'model.safetensors', 'DINOv3', 'DINOv3 License'),
        ('dinov3', V1, 'EUPE-ConvNeXt-T.pt', 'EUPE', 'FAIR Noncommercial Research License: no commercial'),
        ('timm', V1, 'timm/convnext_tiny.eupe_lvd1689m/model.safetensors', 'EUPE', 'no commercial use'),
        ('mmearth', MMEARTH, 'checkpoint-199.pth', 'MMEarth', 'B7 B8A B8 B9'),
        ('openclip', V1, 'open_clip_pytorch_model.bin', 'CLIP', 'mean=[122.771,116.746,104.094]'),
        ('timm', V1, 'convnext_base.clip_laion2b_augreg.safetensors', 'CLIP', "CLIP's mean and deviation, not Im"),
        ('spark', V1, 'cnxS224_withdecoder_1kpretrained_spark_style.pth', 'SparK', 'licensed MIT'),
        ('official-dense', V1, 'convnextB_1kpretrained_official_style.pth', 'SparK', 'licensed MIT'),
        ('official-dense', V1, 'convnext_tiny_1k_224_ema.pth', 'ConvNeXt', 'V1 weights are licensed MIT'),
        ('official-dense', {}, 'convnextv2_tiny_1k_224_ema.pt', 'ConvNeXt V2', 'CC BY-NC 4.0'),
        ('timm', V1, 'https://huggingface.co/timm/convnext_tiny.fb_in1k/x', 'ConvNeXt, converted', 'Apache-2.0'),
        ('timm', V1, 'eupeptic/sparkling.pth', None, ''),
        ('canonical', {}, 'work_dirs/dinov3_start/epoch_12.pth', None, ''),
    ],
)
def test_provenance_is_logged(layout, settings, address, name, words):
    """A file's layout, name and weights give its distribution, whose licence and images are one sentence each."""
    weights = ConvNeXtV2(NARROW, out_norm=False, **settings).state_dict()
    found = find_distribution(address, Backbone(layout, weights, []))
    assert (found.name if found else None) == name and words in (found.describe() if found else '')
    assert len({one.name for one in DISTRIBUTIONS}) == len(DISTRIBUTIONS)


def test_the_log_and_the_converter_say_whose_weights_they_are(tmp_path, capsys):
    """The initializer logs licence and normalisation once, and the converter prints them."""
    from mmconvnextv2.commands import convert

    path, model = str(tmp_path / 'open_clip_pytorch_model.bin'), ConvNeXtV2(NARROW, out_indices=(3,), **V1)
    torch.save(weights_of('openclip-CLIP-linear'), path)
    lines, logger = [], MMLogger.get_instance('provenance', log_level='INFO')
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    load_backbone(model, path)
    logger.removeHandler(handler)
    assert len(lines) == 1 and "LAION's CLIP weights are licensed MIT" in lines[0] and 'std=[68.5,66.632' in lines[0]
    convert.convert(convert.parse_args([path, str(tmp_path / 'out.pth'), '--check']))
    out = capsys.readouterr().out
    assert 'model.data_preprocessor.mean=[122.771,116.746,104.094]' in out and 'openclip (timm ' in out


DOCUMENT = (Path(__file__).parents[2] / 'docs' / 'weights.md').read_text()
SECTION = DOCUMENT.partition('## Other starting weights')[2].partition('## Convert')[0]
STARTS = re.findall(r'tools/train.py (\S+) --cfg-options((?:[ \\\n]+model\S+)+)', SECTION)


@pytest.mark.parametrize('number, file', [(0, 'dinov3'), (1, 'openclip-CLIP-linear'), (2, 'mmearth-16')])
def test_the_documents_overrides_fit(tmp_path, number, file):
    """The overrides that the page on weights gives for a distribution build a backbone that loads its file."""
    from mmengine.config import DictAction
    from mmengine.registry import MODELS

    from mmconvnextv2.utils.config import load_config

    config, options = STARTS[number]
    values = dict(option.split('=', 1) for option in options.replace('\\', ' ').split())
    checkpoint = tmp_path / Path(values.pop('model.backbone.init_cfg.checkpoint')).name
    torch.save(weights_of(file), checkpoint)
    cfg = load_config(
        str(Path(__file__).parents[2] / config),
        {key: DictAction._parse_iterable(value) for key, value in values.items()},
    )
    cfg.model.backbone.update(arch=NARROW)
    cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
    model = MODELS.build(cfg.model.backbone)
    model.init_weights()
    weights, found = model.state_dict(), to_canonical(weights_of(file))
    assert all(torch.equal(weights[name], value) for name, value in found.items() if name in weights)
    assert len(STARTS) == 3 and {name for name in found if name not in weights} <= {'norm3.weight', 'norm3.bias'}
    if file.startswith('openclip'):
        pixels = cfg.model.data_preprocessor
        expected = [255 * value for value in timm.data.OPENAI_CLIP_MEAN + timm.data.OPENAI_CLIP_STD]
        assert [*pixels.mean, *pixels.std] == pytest.approx(expected, abs=1e-3)
