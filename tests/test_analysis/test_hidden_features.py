"""Features are found in models of three libraries, and are the same ones with the same weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from mmpretrain.models import ConvNeXt, VisionTransformer
from small_models import NARROW
from torch import nn
from transformers import ConvNextV2Config, ConvNextV2Model

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.analysis.feature_hooks import (
    depths_of,
    find_blocks,
    sites_to_square,
    to_sites,
    watch_hidden,
    watch_outputs,
)
from mmconvnextv2.checkpoint import from_canonical

NAMES = ['stages.0.0', 'stages.1.0', 'stages.2.0', 'stages.2.1', 'stages.3.0']


def make_ours(**kwargs):
    torch.manual_seed(0)
    model = ConvNeXtV2(NARROW, out_norm=False, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def make_timm(weights, **kwargs):
    model = timm.models.convnext.ConvNeXt(depths=NARROW['depths'], dims=NARROW['channels'], num_classes=0, **kwargs)
    layout = 'timm-conv' if kwargs.get('conv_mlp') else 'timm'
    model.load_state_dict(from_canonical(weights, layout), strict=False)  # except for the final norm
    return model.double().eval()


def make_mmpretrain(weights, **kwargs):
    model = ConvNeXt(NARROW, **kwargs).double()
    wanted = model.state_dict()
    model.load_state_dict({key: value.view(wanted[key].shape) for key, value in weights.items()}, strict=False)
    model.eval()
    return model


def make_transformers(weights):
    model = ConvNextV2Model(ConvNextV2Config(depths=NARROW['depths'], hidden_sizes=NARROW['channels']))
    model.load_state_dict(from_canonical(weights, 'huggingface'), strict=False)
    return model.double().eval()


V2, V1 = dict(use_grn=True), dict(use_grn=False)
SAME = {  # the same network in other libraries, linears as such and as 1x1 convolutions
    'timm': (dict(), lambda weights: make_timm(weights, ls_init_value=None, **V2)),
    'timm-conv': (dict(), lambda weights: make_timm(weights, conv_mlp=True, ls_init_value=None, **V2)),
    'mmpretrain': (dict(), lambda weights: make_mmpretrain(weights, layer_scale_init_value=0.0, **V2)),
    'mmpretrain-conv': (
        dict(),
        lambda weights: make_mmpretrain(weights, layer_scale_init_value=0.0, linear_pw_conv=False, **V2),
    ),
    'transformers': (dict(), make_transformers),
    'timm-V1': (dict(response_norm=None, layer_scale_init_value=1.0), lambda weights: make_timm(weights, **V1)),
    'mmpretrain-V1': (dict(response_norm=None, layer_scale_init_value=1.0), lambda weights: make_mmpretrain(weights)),
}


def collect(watch, model, images):
    seen = {}
    blocks = find_blocks(model)
    with torch.no_grad(), watch(model, blocks, lambda index, features: seen.update({index: features.clone()})):
        model(images)
    return [seen[index] for index in range(len(blocks))]


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('library', SAME)
def test_other_libraries_give_the_same_features(library, images):
    """With converted weights the hidden features and the outputs of all blocks equal ours, site by site."""
    options, make = SAME[library]
    ours = make_ours(**options)
    theirs = make({key: value.float() for key, value in ours.state_dict().items()})
    ours.load_state_dict({key: value.float().double() for key, value in ours.state_dict().items()})
    for watch, factor in ((watch_hidden, 4), (watch_outputs, 1)):
        found, expected = collect(watch, theirs, images), collect(watch, ours, images)
        assert [one.shape for one in found] == [
            (2, (16 >> stage) ** 2, factor * NARROW['channels'][stage]) for stage in (0, 1, 2, 2, 3)
        ]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * other.abs().max().item())


@pytest.mark.parametrize('norm', [dict(type='GRN'), dict(type='SE'), None], ids=str)
def test_hidden_features_are_what_the_second_linear_reads(norm, images):
    """What is seen in a block, computed by hand from its input: the depthwise branch, activation and response norm."""
    model = make_ours(response_norm=norm)
    hidden, outputs = collect(watch_hidden, model, images), collect(watch_outputs, model, images)
    block, before = model.stages[2][1], outputs[2]
    with torch.no_grad():
        branch = block.depthwise_conv(before.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)
        expected = F.gelu(block.pointwise_conv1(block.norm(branch)))
        expected = block.grn(expected) if norm else expected
        torch.testing.assert_close(hidden[3], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(outputs[3], before + block.pointwise_conv2(expected), rtol=1e-9, atol=1e-9)


def test_watching_changes_nothing_and_ends(images):
    """The model's result is the same while it is watched, and no hook is left, after an error neither."""
    model = make_ours()
    blocks = find_blocks(model)
    assert [block.name for block in blocks] == NAMES and depths_of(blocks) == [0, 0.25, 0.5, 0.75, 1]
    before = model(images)[3]
    with watch_hidden(model, blocks, lambda index, features: None):
        torch.testing.assert_close(model(images)[3], before, rtol=1e-9, atol=1e-9)
    with pytest.raises(ZeroDivisionError), watch_outputs(model, blocks, lambda index, features: 1 / 0):
        model(images)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize('library', ('timm', 'mmpretrain'))
def test_transformers_have_sites_without_class_token(library):
    """The hidden features of vision transformers are those of the patches: the class token is left out."""
    if library == 'timm':
        model = timm.models.vision_transformer.VisionTransformer(64, 16, embed_dim=24, depth=2, num_heads=2).eval()
        first = model.blocks[0].mlp.fc2
    else:
        arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=96)
        model = VisionTransformer(arch, 64, 16)
        model.eval()
        first = model.layers[0].ffn.layers[1]
    seen = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    hidden = collect(watch_hidden, model, torch.randn(1, 3, 64, 64))
    assert len(hidden) == 2 and torch.equal(hidden[0], seen[0][:, 1:]) and hidden[0].shape == (1, 16, 96)


def test_layouts_become_sites():
    """Maps with channels first and last and tokens give the same sites, in raster order, and go back to a square."""
    square = torch.arange(2 * 9 * 5.0).view(2, 3, 3, 5)  # (B, H, W, C)
    sites = to_sites(square, False, 0)
    assert torch.equal(sites[1, 5], square[1, 1, 2])
    assert torch.equal(to_sites(square.permute(0, 3, 1, 2), True, 0), sites)
    assert torch.equal(to_sites(F.pad(sites, (0, 0, 2, 0)), False, 2), sites)
    assert torch.equal(sites_to_square(sites), square)
    with pytest.raises(ValueError, match='8 positions: expected a square number'):
        sites_to_square(sites[:, 1:])


def test_unknown_models_are_refused():
    """A model without known blocks is refused with what is expected."""
    with pytest.raises(ValueError, match='Sequential has no block .*pointwise_conv2, mlp.fc2'):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))
