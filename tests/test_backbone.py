"""The backbone is mmpretrain's and timm's ConvNeXt V2 with the same weights."""

import functools

import pytest
import timm
import torch
from mmcv.ops import RoIAlign
from mmpretrain.models import ConvNeXt
from torch import nn
from torchvision.ops import roi_align

from mmconvnextv2 import ARCHS, ConvNeXtV2
from mmconvnextv2.checkpoint import from_canonical

UPSTREAM = dict(use_grn=True, layer_scale_init_value=0.0, gap_before_final_norm=False, out_indices=[0, 1, 2, 3])


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize('arch', ARCHS)
def test_state_dict_is_mmpretrains(arch, monkeypatch):
    """Keys and shapes equal mmpretrain's in every size."""
    monkeypatch.setattr(torch, 'linspace', functools.partial(torch.linspace, device='cpu'))  # upstream reads it out
    with torch.device('meta'):
        ours, theirs = ConvNeXtV2(arch), ConvNeXt(arch, **UPSTREAM)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize('arch', ('atto', 'femto', 'nano'))
def test_outputs_equal_mmpretrains(arch):
    """With the same random weights all four maps equal mmpretrain's, also where sides are not multiples of 32."""
    ours, theirs = randomise(ConvNeXtV2(arch)).double(), ConvNeXt(arch, **UPSTREAM).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 70, 101, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_classifier_features_equal_timms():
    """norm(mean over sites) equals the input of timm's classifier with the same weights."""
    ours = randomise(ConvNeXtV2('atto', out_indices=(3,), gap_before_final_norm=True)).double()
    theirs = timm.create_model('convnextv2_atto', num_classes=0).double().eval()
    theirs.load_state_dict(from_canonical(ours.state_dict(), 'timm-conv'))
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[0], theirs(images), rtol=1e-9, atol=1e-9)


def test_convnext_v1_is_an_option():
    """Without a response norm and with LayerScale the backbone is mmpretrain's ConvNeXt V1."""
    arch = dict(depths=[1, 1, 2, 1], channels=[8, 16, 16, 24])
    ours = randomise(ConvNeXtV2(arch, response_norm=None, layer_scale_init_value=1e-6)).double()
    theirs = ConvNeXt(arch, gap_before_final_norm=False, out_indices=[0, 1, 2, 3]).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_maps_suit_roi_align():
    """mmcv's RoIAlign, which ignores strides, pools from our maps what torchvision's, which honours them, pools."""
    features = randomise(ConvNeXtV2('atto'))(torch.randn(1, 3, 64, 64))[0]
    boxes = torch.tensor([[0.0, 3.0, 2.0, 50.0, 41.0]])
    pooled = RoIAlign(7, spatial_scale=0.25, sampling_ratio=2)(features, boxes)
    torch.testing.assert_close(pooled, roi_align(features, boxes, 7, 0.25, 2, True))


def test_weights_are_drawn_once_with_std_002():
    """Linears and convolutions have standard deviation 0.02 (truncated at two units), biases and GRN are zero."""
    model = ConvNeXtV2('femto')
    model.init_weights()
    block = model.stages[2][0]
    assert abs(block.pointwise_conv1.weight.std().item() - 0.02) < 1e-3
    assert not any(tensor.any() for tensor in (block.pointwise_conv1.bias, block.grn.gamma, block.grn.beta))


def test_frozen_stages_do_not_train():
    """The stem and the first stages that are frozen have no gradient and stay in evaluation mode."""
    model = ConvNeXtV2(dict(depths=(1, 1, 1, 1), channels=(4, 4, 4, 4)), frozen_stages=2).train()
    sum(output.sum() for output in model(torch.randn(1, 3, 64, 64))).backward()
    trained = {
        name.split('.')[1]
        for name, parameter in model.named_parameters()
        if name.startswith('stages') and parameter.grad is not None
    }
    assert trained == {'2', '3'}
    assert not model.stages[1].training and model.stages[2].training


@pytest.mark.parametrize(
    'arguments',
    [
        dict(arch='big'),
        dict(arch=dict(depths=(1, 1, 1, 1))),
        dict(out_indices=(4,)),
        dict(frozen_stages=5),
        dict(drop_path_rate=1.0),
        dict(response_norm=dict(type='XYZ')),
    ],
)
def test_refuses_bad_arguments(arguments):
    """A bad argument is named in the error."""
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ConvNeXtV2(**arguments)
