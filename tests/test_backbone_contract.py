"""Classifier logits, sizes, output stages and refused input of the backbone; its equality to upstream is proved
in test_backbone.py."""

import pytest
import timm
import torch
from mmpretrain.models import ImageClassifier
from torch import nn

from mmconvnextv2 import ARCHS, ConvNeXtV2

MILLIONS = dict(atto=3.7, femto=5.2, pico=9.1, nano=15.6, tiny=28.6, base=89, large=198, huge=660)
TO_TIMM = [
    ('downsample_layers.0', 'stem'),
    ('depthwise_conv', 'conv_dw'),
    ('pointwise_conv1', 'mlp.fc1'),
    ('pointwise_conv2', 'mlp.fc2'),
    ('grn.gamma', 'mlp.grn.weight'),
    ('grn.beta', 'mlp.grn.bias'),
    ('norm3', 'head.norm'),
]


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.double().eval()


def timm_key(key):
    """Translate a backbone key by hand."""
    for stage in (1, 2, 3):
        key = key.replace(f'downsample_layers.{stage}.', f'stages.{stage}.downsample.')
    for ours, theirs in TO_TIMM:
        key = key.replace(ours, theirs)
    part = key.split('.')
    if part[0] == 'stages' and part[2].isdigit():
        part.insert(2, 'blocks')
    return '.'.join(part)


def test_imagenet_logits_equal_upstreams():
    """With the same weights the logits of mmpretrain's classifier over our backbone, of mmpretrain's own and of timm's
    are one."""
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=320, loss=dict(type='CrossEntropyLoss'))
    ours = randomise(
        ImageClassifier(
            dict(type='mmengine.ConvNeXtV2', arch='atto', out_indices=(3,), gap_before_final_norm=True), head=head
        )
    )
    mmpretrains = (
        ImageClassifier(dict(type='ConvNeXt', arch='atto', use_grn=True, layer_scale_init_value=0.0), head=head)
        .double()
        .eval()
    )
    timms = timm.create_model('convnextv2_atto').double().eval()
    mmpretrains.load_state_dict(ours.state_dict())
    renamed = {timm_key(key): value for key, value in ours.backbone.state_dict().items()}
    renamed.update({key.replace('fc', 'head.fc'): value for key, value in ours.head.state_dict().items()})
    shapes = {key: value.shape for key, value in timms.state_dict().items()}
    timms.load_state_dict({key: value.view(shapes[key]) for key, value in renamed.items()})  # 1x1 convolutions in timm
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        logits = ours(images)
        assert type(ours.backbone) is ConvNeXtV2 and logits.std() > 0.1
        torch.testing.assert_close(logits, mmpretrains(images), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(logits, timms(images), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('arch', ARCHS)
def test_parameters_are_the_published_count(arch):
    """With the classifier's norm and 1000 classes each size has the published number of parameters."""
    with torch.device('meta'):
        model = ConvNeXtV2(arch, out_indices=(3,))
        head = nn.Linear(model.channels[-1], 1000)
    millions = sum(one.numel() for module in (model, head) for one in module.parameters()) / 1e6
    assert abs(millions - MILLIONS[arch]) <= max(0.05, 0.005 * MILLIONS[arch])


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
    """An optimizer step changes every parameter but those of the frozen stages, also after train() was called."""
    model = make_backbone(frozen_stages=frozen_stages).train()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    maps = model(torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=generator))
    sum((one * torch.randn(one.shape, generator=generator, dtype=one.dtype)).sum() for one in maps).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, one in model.named_parameters():
        frozen = name.split('.')[0] in ('downsample_layers', 'stages') and int(name.split('.')[1]) < frozen_stages
        assert torch.equal(one, before[name]) == frozen, name


@pytest.mark.parametrize(
    'shape, message',
    [
        ((3, 64, 64), r'\(3, 64, 64\): expected \(B, channels'),
        ((1, 3, 31, 64), 'images are 31x64 pixels.*at least 32x32'),
    ],
)
def test_images_that_cannot_be_visited_are_refused(make_backbone, shape, message):
    """The error names the image's shape and what is expected."""
    with pytest.raises(ValueError, match=message):
        make_backbone()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(arch='big'), "arch='big' is unknown: choose from .*'atto'"),
        (dict(arch=dict(depths=(1, 1, 1), channels=(4, 4, 4, 4))), 'expected dict'),
        (dict(arch=dict(depths=(1, 1, 1, 1), channels=(4, 4, 4, 4), width=2)), 'expected dict'),
        (dict(out_indices=()), 'out_indices=.*0 to 3'),
        (dict(frozen_stages=-1), 'frozen_stages=-1: expected 0 to 4'),
        (dict(drop_path_rate=-0.1), r'drop_path_rate=-0.1: expected a rate in \[0, 1\)'),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    """A refused argument is named with its value and what may be given."""
    with pytest.raises(ValueError, match=message):
        ConvNeXtV2(**arguments)


def test_drawn_weights_have_std_002():
    """Every convolution and linear is drawn with standard deviation 0.02 and zero bias, every norm is the identity."""
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
