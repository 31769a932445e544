"""The converting tool writes whole files or none, tells what it did, and its files work in the foreign libraries."""
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import nn

from mmconvnextv2 import ARCHS, ConvNeXtV2
from mmconvnextv2.checkpoint import (from_canonical, pretraining_from_canonical, pretraining_to_canonical, read_arch,
                                     to_canonical)
from mmconvnextv2.convert import LAYOUTS, check_conversion, convert_file
from mmconvnextv2.safe_loading import load_file

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'
NARROW = dict(depths=(1, 1, 2, 1), channels=(8, 16, 16, 24))


def make(arch=NARROW):
    model = ConvNeXtV2(arch, out_indices=(3, ), out_norm=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.state_dict()


@pytest.mark.parametrize('arch', ['atto', 'tiny'])
def test_every_pair_of_layouts_bit_for_bit(arch):
    """From any layout to any other and back through it, two sizes keep every bit."""
    weights = make(arch)
    files = {layout: from_canonical(weights, layout) for layout in LAYOUTS}
    for one, other in permutations(LAYOUTS, 2):
        again = from_canonical(to_canonical(files[one]), other)
        assert set(again) == set(files[other])
        assert all(torch.equal(again[name], value) for name, value in files[other].items())


@pytest.mark.parametrize('arch', ARCHS)
def test_every_size_by_shape(arch):
    """In all sizes every layout comes back with the same names and shapes, and the architecture is read off them."""
    with torch.device('meta'):
        weights = ConvNeXtV2(arch, out_indices=(3, ), out_norm=False).state_dict()
    for layout in LAYOUTS:
        back = to_canonical(from_canonical(weights, layout))
        assert {name: value.shape for name, value in back.items()} == {k: v.shape for k, v in weights.items()}
    assert read_arch(weights) == (list(ARCHS[arch]['depths']), list(ARCHS[arch]['channels']))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_files_and_check(tmp_path, layout, suffix):
    """Every layout written in both kinds of file reads back to the same bits, and the foreign model agrees."""
    if layout.startswith('huggingface'):
        pytest.importorskip('transformers')
    source, target, weights = str(tmp_path / 'source.pth'), str(tmp_path / f'target.{suffix}'), make()
    torch.save(dict(state_dict={'backbone.' + k: v for k, v in weights.items()} | {'head.bias': torch.ones(2)}), source)
    report = convert_file(source, target, layout)
    assert '1 dropped\n    head.bias' in report
    if layout != 'timm':  # the narrow model's linears become convolutions
        content = load_file(target)
        found = to_canonical(content.get('state_dict', content.get('model', content)))
        assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert check_conversion(source, target).startswith(target)


def test_report_follows_each_weight(tmp_path):
    """The report names the depthwise kernel of the sparse layout with both names and both shapes."""
    source = str(tmp_path / 'source.pth')
    torch.save(make(), source)
    report = convert_file(source, str(tmp_path / 'target.pth'), 'official-sparse')
    assert ('stages.0.0.depthwise_conv.weight -> encoder.stages.0.0.dwconv.kernel, (8, 1, 7, 7) to (49, 8)') in report
    assert '0 kept\n' in report and report.endswith('0 dropped')


def test_check_finds_a_changed_weight(tmp_path):
    """A target whose values are not the source's fails the check."""
    source, target = str(tmp_path / 'source.pth'), str(tmp_path / 'target.pth')
    torch.save(make(), source)
    convert_file(source, target, 'timm')
    changed = load_file(target)
    changed['stages.0.blocks.0.mlp.grn.weight'] += 1
    torch.save(changed, target)
    with pytest.raises(ValueError, match='does not convert back'):
        check_conversion(source, target)


def test_nothing_is_written_on_failure(tmp_path):
    """A source that is not whole leaves no file, no partial file, and an older target as it was."""
    source, target = tmp_path / 'source.pth', tmp_path / 'target.pth'
    weights = make()
    weights.pop('stages.1.0.norm.weight')
    torch.save(weights, source)
    target.write_bytes(b'older')
    run = subprocess.run([sys.executable, TOOL, source, target, '--force'], capture_output=True, text=True)
    assert run.returncode == 1 and 'stages.1.0.norm.weight' in run.stderr and 'Traceback' not in run.stderr
    assert target.read_bytes() == b'older' and len(list(tmp_path.iterdir())) == 2


def test_whole_fcmae_models(tmp_path):
    """A whole FCMAE model with decoder goes to the official names and back bit for bit, and its prediction layer maps
    pixel for pixel."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import MODELS

    import mmconvnextv2.pretrain  # noqa: F401
    model = MODELS.build(dict(
        type='FCMAE', backbone=dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3, ), out_norm=False),
        neck=dict(type='FCMAEDecoder', channels=12), head=dict(type='FCMAEHead')))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    weights = model.state_dict()
    official = pretraining_from_canonical(weights)
    assert official['mask_token'].shape == (1, 12, 1, 1) and official['pred.weight'].shape == (3072, 12, 1, 1)
    assert official['decoder.0.grn.gamma'].shape == (1, 1, 1, 48) and official['proj.weight'].shape == (12, 24, 1, 1)
    assert torch.equal(official['encoder.stages.1.0.dwconv.kernel'][2 * 7 + 5],
                       weights['backbone.stages.1.0.depthwise_conv.weight'][:, 0, 5, 2])
    back = pretraining_to_canonical(official)
    assert set(back) == {name for name in weights if not name.startswith('data_preprocessor')}
    assert all(torch.equal(back[name], weights[name]) for name in back)
    source, target = str(tmp_path / 'ours.pth'), str(tmp_path / 'official.pth')
    torch.save(dict(state_dict=weights), source)
    assert '0 dropped' in convert_file(source, target, 'official-sparse', pretraining=True)
    assert all(torch.equal(load_file(target)['model'][name], value) for name, value in official.items())
