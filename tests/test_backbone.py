"""The backbone and its layers: equal to mmpretrain's and timm's ConvNeXt V2 with the same weights, in all sizes, with
the initialisation, output stages, frozen stages and errors that its docstring promises."""

import functools

import numpy as np
import pytest
import timm
import torch
from mmpretrain.models import ConvNeXt, ImageClassifier
from small_models import NARROW
from torch import nn

from mmconvnextv2 import ARCHS, ConvNeXtV2
from mmconvnextv2.checkpoint import from_canonical
from mmconvnextv2.models.layers import DropPath, LayerNorm
from mmconvnextv2.ops.reductions import mean_over_sites

UPSTREAM = dict(use_grn=True, layer_scale_init_value=0.0, gap_before_final_norm=False, out_indices=[0, 1, 2, 3])
V1 = dict(response_norm=None, layer_scale_init_value=1e-6)
MILLIONS = dict(atto=3.7, femto=5.2, pico=9.1, nano=15.6, tiny=28.6, base=89, large=198, huge=660)  # table 14
MILLIONS |= dict(small=50, xlarge=350)  # of ConvNeXt V1 (arXiv 2201.03545, table 1)


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.double().eval()


def assert_maps_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('arch', ARCHS)
def test_state_dict_is_mmpretrains(arch, monkeypatch):
    """Keys and shapes equal mmpretrain's in every size."""
    # mmpretrain calls .item() on linspace's values, which fails on the meta device
    monkeypatch.setattr(torch, 'linspace', functools.partial(torch.linspace, device='cpu'))
    with torch.device('meta'):
        ours, theirs = ConvNeXtV2(arch), ConvNeXt(arch, **UPSTREAM)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_the_published_count(arch):
    """With the classifier's norm and 1000 classes each size has the published number of parameters."""
    with torch.device('meta'):
        model = ConvNeXtV2(arch, out_indices=(3,), **(V1 if arch in ('small', 'xlarge') else {}))
        head = nn.Linear(model.channels[-1], 1000)
    millions = sum(one.numel() for module in (model, head) for one in module.parameters()) / 1e6
    assert abs(millions - MILLIONS[arch]) <= max(0.05, 0.005 * MILLIONS[arch])


@pytest.mark.parametrize('arch', ('atto', 'femto', 'nano'))
def test_outputs_equal_mmpretrains(arch):
    """With the same random weights all four maps equal mmpretrain's, also where sides are not multiples of 32."""
    ours, theirs = randomise(ConvNeXtV2(arch)), ConvNeXt(arch, **UPSTREAM).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 70, 101, dtype=torch.float64)
    with torch.no_grad():
        assert_maps_equal(ours(images), theirs(images))


def test_convnext_v1_is_an_option():
    """Without a response norm and with LayerScale the backbone is mmpretrain's ConvNeXt V1."""
    ours = randomise(ConvNeXtV2(NARROW, response_norm=None, layer_scale_init_value=1e-6))
    theirs = ConvNeXt(NARROW, gap_before_final_norm=False, out_indices=[0, 1, 2, 3]).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_maps_equal(ours(images), theirs(images))


def test_imagenet_logits_equal_upstreams():
    """With the same weights, mmpretrain's classifier over our backbone, mmpretrain's own and timm's give the same
    logits."""
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=320, loss=dict(type='CrossEntropyLoss'))
    backbone = dict(type='mmengine.ConvNeXtV2', arch='atto', out_indices=(3,), gap_before_final_norm=True)
    ours = randomise(ImageClassifier(backbone, head=head))
    upstream = dict(type='ConvNeXt', arch='atto', use_grn=True, layer_scale_init_value=0.0)
    mmpretrains = ImageClassifier(upstream, head=head).double().eval()
    mmpretrains.load_state_dict(ours.state_dict())
    timms = timm.create_model('convnextv2_atto').double().eval()
    weights = from_canonical(ours.backbone.state_dict(), 'timm-conv')
    timms.load_state_dict({**weights, 'head.fc.weight': ours.head.fc.weight, 'head.fc.bias': ours.head.fc.bias})
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        logits = ours(images)
        assert type(ours.backbone) is ConvNeXtV2 and logits.std() > 0.1
        torch.testing.assert_close(logits, mmpretrains(images), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(logits, timms(images), rtol=1e-5, atol=1e-8)


def test_maps_suit_roi_align():
    """mmcv's RoIAlign, which ignores strides, pools from our maps what torchvision's, which honours them, pools."""
    mmcv_ops = pytest.importorskip('mmcv.ops', reason='needs mmcv: make env')
    roi_align = pytest.importorskip('torchvision.ops', reason='needs torchvision: make env').roi_align
    features = randomise(ConvNeXtV2('atto')).float()(torch.randn(1, 3, 64, 64))[0]
    boxes = torch.tensor([[0.0, 3.0, 2.0, 50.0, 41.0]])
    pooled = mmcv_ops.RoIAlign(7, spatial_scale=0.25, sampling_ratio=2)(features, boxes)
    torch.testing.assert_close(pooled, roi_align(features, boxes, 7, 0.25, 2, True))


@pytest.mark.parametrize('given, stages', [((0, 2), (0, 2)), ((3, 1), (1, 3)), ((-1,), (3,)), (2, (2,))])
def test_out_indices_choose_maps(make_backbone, given, stages):
    """The maps of the chosen stages, ascending, are those of the full forward, and only their norms exist."""
    every, chosen = make_backbone(), make_backbone(out_indices=given)
    chosen.load_state_dict({key: value for key, value in every.state_dict().items() if key in chosen.state_dict()})
    images = torch.randn(1, 3, 64, 32, dtype=torch.float64)
    for one, stage in zip(chosen(images), stages, strict=True):
        assert torch.equal(one, every(images)[stage])
    assert {name for name, _ in chosen.named_children() if name.startswith('norm')} == {f'norm{one}' for one in stages}


def test_odd_images_lose_their_rest(make_backbone):
    """A dense forward of any size equals that of the image cut to whole patches of 4, stage sizes rounded down."""
    model, images = make_backbone(), torch.randn(1, 3, 71, 109, dtype=torch.float64)
    maps = model(images)
    assert [tuple(one.shape[-2:]) for one in maps] == [(17, 27), (8, 13), (4, 6), (2, 3)]
    for one, other in zip(maps, model(images[..., :68, :108]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('frozen_stages', range(5))
def test_frozen_stages_keep_their_values(make_backbone, frozen_stages):
    """After train(), frozen stages stay in evaluation mode and get no gradient; an optimizer step changes every
    parameter except theirs."""
    model = make_backbone(frozen_stages=frozen_stages).train()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    maps = model(torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=generator))
    sum((one * torch.randn(one.shape, generator=generator, dtype=one.dtype)).sum() for one in maps).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, one in model.named_parameters():
        frozen = name.split('.')[0] in ('downsample_layers', 'stages') and int(name.split('.')[1]) < frozen_stages
        assert torch.equal(one, before[name]) == frozen and (one.grad is None) == frozen, name
    assert [stage.training for stage in model.stages] == [stage >= frozen_stages for stage in range(4)]


def test_initialised_weights_have_std_002():
    """Convolutions and linears have standard deviation 0.02 and zero bias, norms are the identity, and GRN is zero."""
    model = ConvNeXtV2('atto')
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            spread = module.weight.std().item() / 0.02
            assert abs(spread - 1) < 4 / module.weight.numel() ** 0.5 and not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
        elif name.endswith('grn'):
            assert not module.gamma.any() and not module.beta.any(), name


@pytest.mark.parametrize(
    'shape, message',
    [
        ((3, 64, 64), r'\(3, 64, 64\): expected \(B, channels'),
        ((1, 3, 31, 64), 'images are 31x64 pixels.*at least 32x32'),
    ],
)
def test_impossible_images_are_refused(make_backbone, shape, message):
    """The error names the image's shape and what is expected."""
    with pytest.raises(ValueError, match=message):
        make_backbone()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(arch='big'), "arch='big' is unknown: choose from .*'atto'"),
        (dict(arch=dict(depths=(1, 1, 1, 1))), 'arch'),
        (dict(arch=dict(depths=(1, 1, 1), channels=(4, 4, 4, 4))), 'expected dict'),
        (dict(arch=dict(depths=(1, 1, 1, 1), channels=(4, 4, 4, 4), width=2)), 'expected dict'),
        (dict(out_indices=()), 'out_indices=.*0 to 3'),
        (dict(out_indices=(4,)), 'out_indices'),
        (dict(frozen_stages=-1), 'frozen_stages=-1: expected 0 to 4'),
        (dict(frozen_stages=5), 'frozen_stages'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate=-0.1: expected a rate in \[0, 1\)'),
        (dict(drop_path_rate=1.0), 'drop_path_rate'),
        (dict(response_norm=dict(type='XYZ')), 'response_norm'),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    """A refused argument is named with its value and the allowed ones."""
    with pytest.raises(ValueError, match=message):
        ConvNeXtV2(**arguments)


def test_drop_path_drops_whole_images():
    """Each image's branch is all zero or scaled by 1 / keep, about the given share is dropped, and evaluation drops
    none."""
    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.rand(4000, 3, 2) + 1
    output = layer(branch)
    dropped = (output == 0).flatten(1).all(1)
    torch.testing.assert_close(output[~dropped], branch[~dropped] / 0.75)
    assert abs(dropped.float().mean().item() - 0.25) < 0.03
    assert torch.equal(layer.eval()(branch), branch)


def test_layer_norm_is_per_site():
    """Each site is normalised over its channels, as numpy does it."""
    layer, features = LayerNorm(4).double(), torch.randn(2, 15, 4, dtype=torch.float64)
    torch.nn.init.normal_(layer.weight), torch.nn.init.normal_(layer.bias)
    values = features.numpy()
    values = (values - values.mean(2, keepdims=True)) / np.sqrt(values.var(2, keepdims=True) + 1e-6)
    weight, bias = (one.detach().numpy() for one in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(features).detach(), torch.from_numpy(values * weight + bias))


@pytest.mark.parametrize('dtype', (torch.float64, torch.float16))
def test_mean_counts_visible_sites(dtype):
    """The mean of each image is over its own counted sites, whatever values others hold, and does not overflow."""
    sites = (torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0)) * 100 + 300).to(dtype)
    counted = torch.zeros(2, 300, 1, dtype=torch.bool)
    counted[0, :250], counted[1, 40:290] = True, True
    expected = torch.stack([sites[0, :250].double().mean(0), sites[1, 40:290].double().mean(0)])[:, None]
    ours = mean_over_sites(torch.where(counted, sites, torch.nan), counted)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, rtol=1e-12 if dtype == torch.float64 else 1e-3, atol=0)
    assert torch.equal(mean_over_sites(sites), sites.mean(1, keepdim=True))
