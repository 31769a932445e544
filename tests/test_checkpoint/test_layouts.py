"""Weights survive every layout bit for bit, and whatever does not fit is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.registry import MODELS
from small_models import FAMILIES, NARROW, settings_of
from sparse_reference import official_sparse_file
from torch import nn

from mmconvnextv2 import ARCHS, ConvNeXtV2
from mmconvnextv2.checkpoint import LAYOUTS, detect_layout, from_canonical, to_canonical

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


def make(**kwargs):
    torch.manual_seed(0)
    model = ConvNeXtV2(NARROW, out_indices=(3,), **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def test_every_layout_is_in_a_family():
    """Each layout is tested with weights that it has a place for."""
    assert {layout for _, layouts in FAMILIES.values() for layout in layouts} == set(LAYOUTS)


@pytest.mark.parametrize('family, layout', [(name, layout) for name in FAMILIES for layout in FAMILIES[name][1]])
def test_round_trip(family, layout):
    """Canonical to a layout and back gives the same bits, and the layout is recognised."""
    weights = make(out_norm=layout not in ('official-sparse', 'mmearth'), **FAMILIES[family][0]).state_dict()
    foreign = from_canonical(weights, layout)
    assert detect_layout(foreign) == layout
    back = to_canonical(foreign)
    assert set(back) == set(weights) and all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.parametrize('arch', ARCHS)
def test_timm_knows_the_names(arch):
    """In every size the timm layout has exactly the keys and shapes of timm's own model without classifier."""
    with torch.device('meta'):
        layout = 'timm-conv' if arch in ('atto', 'femto', 'pico', 'nano') else 'timm'
        is_v1 = arch in ('small', 'xlarge')
        settings = dict(response_norm=None, layer_scale_init_value=1e-6) if is_v1 else {}
        ours = from_canonical(ConvNeXtV2(arch, out_indices=(3,), **settings).state_dict(), layout)
        theirs = timm.create_model(f'convnext{"" if is_v1 else "v2"}_{arch}', num_classes=0).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_sparse_file_through_the_tool(tmp_path):
    """A hand-made official sparse file goes through the tool and gives the dense model back, bit for bit."""
    weights = make(out_norm=False).state_dict()
    source, target = tmp_path / 'sparse.pth', tmp_path / 'dense.pth'
    torch.save(dict(model=official_sparse_file(weights)), source)
    run = subprocess.run([sys.executable, TOOL, source, target], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    back = torch.load(target, weights_only=True)['state_dict']
    assert set(back) == set(weights) and all(torch.equal(back[key], weights[key]) for key in weights)


def build(path, **kwargs):
    model = MODELS.build(
        dict(type='ConvNeXtV2', arch=NARROW, init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=str(path)), **kwargs)
    )
    model.init_weights()
    return model


def test_initializer_is_strict(tmp_path):
    """A file without GRN, of another size, or of no known layout raises and names what is wrong."""
    weights = make(out_norm=False).state_dict()
    path = tmp_path / 'weights.pth'
    torch.save({key: value for key, value in weights.items() if '.grn.' not in key}, path)
    with pytest.raises(ValueError, match='missing in the file: .*grn.gamma'):
        build(path)
    torch.save({key: value[:1] for key, value in weights.items()}, path)
    with pytest.raises(ValueError, match='of a wrong shape'):
        build(path)
    torch.save({'layer1.conv.weight': torch.zeros(1)}, path)
    with pytest.raises(ValueError, match='no known ConvNeXt layout'):
        build(path)


def test_stem_adapts_to_other_channels(tmp_path):
    """A stem repeated to six channels answers to doubled images as the stem of the file does to single ones."""
    path, source = tmp_path / 'weights.pth', make(out_norm=False)
    torch.save(source.state_dict(), path)
    model = build(path, in_channels=6, out_indices=(3,), out_norm=False)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(images.repeat(1, 2, 1, 1))[0], source(images)[0], rtol=1e-4, atol=1e-4)


def test_what_is_listed_stops_at_ten():
    """An error names ten weights and counts them all."""
    weights = make(out_norm=False).state_dict()
    lost = [name for name in weights if '.norm.' in name or 'pointwise' in name]
    with pytest.raises(ValueError, match=f'{len(lost)} missing in the file: ') as error:
        to_canonical({name: value for name, value in weights.items() if name not in lost})
    assert str(error.value).count('stages.') == 10 and str(error.value).endswith(', ...')


def test_a_missing_layer_scale_is_named():
    """ConvNeXt V1 weights in which one block lacks its LayerScale are incomplete."""
    weights = make(out_norm=False, response_norm=None, layer_scale_init_value=1.0).state_dict()
    del weights['stages.2.1.gamma']
    with pytest.raises(ValueError, match='1 missing in the file: stages.2.1.gamma$'):
        to_canonical(weights)


def test_absurd_channels_are_wrong_shapes():
    """A norm with more channels than torch can count weights for ends in a list of wrong shapes, not in an overflow."""
    weights = make(out_norm=False).state_dict()
    huge = torch.empty(1 << 40, device='meta')
    weights |= {'stages.3.0.norm.weight': huge, 'stages.3.0.norm.bias': huge}
    with pytest.raises(ValueError, match=r'stages.3.0.norm.weight \(1099511627776,\) instead of'):
        to_canonical(weights)


@pytest.mark.parametrize(
    'one, other', [('canonical', 'timm'), ('official-dense', 'official-sparse'), ('huggingface', 'official-dense')]
)
def test_two_layouts_in_a_file_are_refused(one, other):
    """A file with the keys of two layouts is refused by a key of each, and not read as the first that fits."""
    weights = make(out_norm=False).state_dict()
    with pytest.raises(ValueError, match=r'of 2 layouts at once: .*stages.*\(.*\), .*stages.*\(') as error:
        to_canonical({**from_canonical(weights, one), **from_canonical(weights, other)})
    assert f'({one})' in str(error.value) and f'({other})' in str(error.value)


def test_foreign_files_are_named():
    """A file of another architecture is refused with its keys, and the layouts that are known."""
    with pytest.raises(ValueError, match=r'timm, huggingface, .*\): the file holds 3 keys, layer1.0.weight'):
        detect_layout({'layer1.0.weight': 1, 'layer1.0.bias': 2, 'fc.weight': 3})
    with pytest.raises(ValueError, match='the file holds 0 keys'):
        detect_layout({})


@pytest.mark.parametrize('layout', LAYOUTS)
def test_odd_values_are_refused(layout):
    """A weight that is not a tensor, one of another rank, and one that is in the file twice, raise."""
    weights = from_canonical(make(out_norm=False, **settings_of(layout)).state_dict(), layout)
    reshaped = {'official-sparse': 'kernel', 'mmearth': 'kernel', 'timm-conv': 'mlp.fc1.weight'}.get(
        layout, 'fc1.weight'
    )
    name = next((name for name in weights if name.endswith(reshaped)), next(iter(weights)))
    for value in ('text', 3, torch.zeros(()), torch.zeros(2, 3, 5), None):
        with pytest.raises(ValueError, match='not tensors|of a wrong shape'):
            to_canonical({**weights, name: value})
    with pytest.raises(ValueError, match=f'1 weights are in the file twice: module.{name}'):
        to_canonical({**weights, f'module.{name}': weights[name]})


def test_canonical_oddities():
    """mmpretrain's pointwise convolutions become linears; two backbones, and too high block numbers, raise."""
    weights = make(out_norm=False).state_dict()
    convolved = {
        name: value[..., None, None] if 'pointwise' in name and value.ndim == 2 else value
        for name, value in weights.items()
    }
    found = to_canonical(convolved)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    pair = {f'{prefix}.backbone.{name}': value for prefix in ('student', 'teacher') for name, value in weights.items()}
    with pytest.raises(ValueError, match='hold 2 backbones, student.backbone., teacher.backbone.'):
        to_canonical(pair)
    with pytest.raises(ValueError, match='number their blocks up to'):
        to_canonical({**weights, 'stages.2.99999999.norm.weight': torch.zeros(8)})
