"""The conversion tool writes whole files or none, reports what it did, and its files work in the foreign libraries."""

import argparse
import os
import resource
import runpy
import sys
from itertools import permutations, product
from pathlib import Path

import pytest
import torch
from small_models import FAMILIES, NARROW, settings_of
from torch import nn

from mmconvnextv2 import ARCHS, ConvNeXtV2
from mmconvnextv2.checkpoint import (
    extract_state_dict,
    from_canonical,
    pretraining_from_canonical,
    pretraining_to_canonical,
    read_arch,
    to_canonical,
)
from mmconvnextv2.checkpoint.convert import LAYOUTS, check_conversion, convert_file
from mmconvnextv2.checkpoint.load import load_file

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


def make(arch=NARROW, out_norm=False, **kwargs):
    model = ConvNeXtV2(arch, out_norm=out_norm, **{'out_indices': (3,), **kwargs})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.state_dict()


def run_tool(monkeypatch, capsys, *arguments):
    """Run the tool in this process; return its exit status, what it printed and what it complained about."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
        status, complaint = 0, ''
    except SystemExit as error:
        status, complaint = (1, error.code) if isinstance(error.code, str) else (error.code, '')
    captured = capsys.readouterr()
    return status, captured.out, complaint + captured.err


@pytest.mark.parametrize('out_norm', [False, True])
@pytest.mark.parametrize('arch', ['atto', 'tiny'])
def test_every_pair_of_layouts_bit_for_bit(arch, out_norm):
    """From any layout to any other and back through it, two sizes keep every bit, the final norm's too where both have
    one."""
    for settings, layouts in FAMILIES.values():
        weights = make(arch, out_norm, **settings)
        layouts = [layout for layout in layouts if not out_norm or layout not in ('official-sparse', 'mmearth')]
        files = {layout: from_canonical(weights, layout) for layout in layouts}
        read = {layout: to_canonical(file) for layout, file in files.items()}
        for one, other in permutations(layouts, 2):
            again = from_canonical(read[one], other)
            assert set(again) == set(files[other])
            assert all(torch.equal(again[name], value) for name, value in files[other].items())


@pytest.mark.parametrize('arch', ARCHS)
def test_every_size_by_shape(arch):
    """In all sizes every layout becomes every other by name and shape, and the architecture is read off them."""
    for settings, layouts in FAMILIES.values():
        with torch.device('meta'):
            weights = ConvNeXtV2(arch, out_indices=(3,), out_norm=False, **settings).state_dict()
        files = {layout: from_canonical(weights, layout) for layout in layouts}
        read = {layout: to_canonical(file) for layout, file in files.items()}
        for one, other in product(layouts, repeat=2):
            again = from_canonical(read[one], other)
            assert {name: value.shape for name, value in again.items()} == {k: v.shape for k, v in files[other].items()}
    assert read_arch(weights) == (list(ARCHS[arch]['depths']), list(ARCHS[arch]['channels']))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_files_and_check(tmp_path, layout, suffix):
    """Every layout written in both kinds of file reads back to the same bits, and the foreign model agrees."""
    source, target = str(tmp_path / 'source.pth'), str(tmp_path / f'target.{suffix}')
    weights = make(**settings_of(layout))
    torch.save(dict(state_dict={'backbone.' + k: v for k, v in weights.items()} | {'head.bias': torch.ones(2)}), source)
    report = convert_file(source, target, layout)
    assert '1 dropped\n    head.bias' in report
    if layout != 'timm':  # the narrow model's linears become convolutions
        found = to_canonical(extract_state_dict(load_file(target)))
        assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert check_conversion(source, target).startswith(target)


def test_report_follows_each_weight(tmp_path):
    """The report names the depthwise kernel of the sparse layout with both names and both shapes."""
    source = str(tmp_path / 'source.pth')
    torch.save(make(), source)
    report = convert_file(source, str(tmp_path / 'target.pth'), 'official-sparse')
    assert ('stages.0.0.depthwise_conv.weight -> encoder.stages.0.0.dwconv.kernel, (4, 1, 7, 7) to (49, 4)') in report
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


def test_nothing_is_written_on_failure(tmp_path, monkeypatch, capsys):
    """A source that is not whole leaves no file, no partial file, and an older target as it was."""
    source, target = tmp_path / 'source.pth', tmp_path / 'target.pth'
    weights = make()
    weights.pop('stages.1.0.norm.weight')
    torch.save(weights, source)
    target.write_bytes(b'older')
    status, _, complaint = run_tool(monkeypatch, capsys, source, target, '--force')
    assert status == 1 and '1 missing in the file: stages.1.0.norm.weight' in complaint
    assert target.read_bytes() == b'older' and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_full_disk_leaves_the_older_file(tmp_path, suffix):
    """A target that cannot be written to its end stays as it was, without a partial file next to it."""
    source, target = tmp_path / 'source.pth', tmp_path / f'target.{suffix}'
    torch.save(make(), source)
    target.write_bytes(b'older')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, limits[1]))
    try:
        with pytest.raises(OSError, match=f'target.{suffix} cannot be written .*is the disk full'):
            convert_file(str(source), str(target), 'timm', force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == b'older' and len(list(tmp_path.iterdir())) == 2


def test_whole_fcmae_models(tmp_path):
    """A whole FCMAE model with decoder goes to the official names and back bit for bit, and its prediction layer maps
    pixel for pixel."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import MODELS

    import mmconvnextv2.pretrain  # noqa: F401

    model = MODELS.build(
        dict(
            type='FCMAE',
            backbone=dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False),
            neck=dict(type='FCMAEDecoder', channels=12),
            head=dict(type='FCMAEHead'),
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    weights = model.state_dict()
    official = pretraining_from_canonical(weights)
    assert official['mask_token'].shape == (1, 12, 1, 1) and official['pred.weight'].shape == (3072, 12, 1, 1)
    assert official['decoder.0.grn.gamma'].shape == (1, 1, 1, 48) and official['proj.weight'].shape == (12, 10, 1, 1)
    assert torch.equal(
        official['encoder.stages.1.0.dwconv.kernel'][2 * 7 + 5],
        weights['backbone.stages.1.0.depthwise_conv.weight'][:, 0, 5, 2],
    )
    back = pretraining_to_canonical(official)
    assert set(back) == {name for name in weights if not name.startswith('data_preprocessor')}
    assert all(torch.equal(back[name], weights[name]) for name in back)
    source, target = str(tmp_path / 'ours.pth'), str(tmp_path / 'official.pth')
    torch.save(dict(state_dict=weights), source)
    assert '0 dropped' in convert_file(source, target, 'official-sparse', pretraining=True)
    assert all(torch.equal(load_file(target)['model'][name], value) for name, value in official.items())


def test_the_tool_chooses_and_checks(tmp_path, monkeypatch, capsys):
    """--ema and --raw choose, --check compares what was chosen, and what contradicts itself is refused."""
    raw, ema = make(), make()
    source, target = tmp_path / 'source.pth', tmp_path / 'target.safetensors'
    torch.save(
        dict(
            model=from_canonical(raw, 'official-dense'),
            model_ema=from_canonical(ema, 'official-dense'),
            args=argparse.Namespace(lr=0.1),
        ),
        source,
    )
    for option, expected in (((), raw), (('--raw',), raw), (('--ema',), ema)):
        status, out, err = run_tool(monkeypatch, capsys, source, target, '--to', 'timm', '--check', '--force', *option)
        assert (status, err) == (0, '') and f'{target} converts back to the same bits (66 weights)' in out
        found = to_canonical(load_file(str(target)))
        assert all(torch.equal(found[name].flatten(), value.flatten()) for name, value in expected.items())
    for option in (('--ema', '--raw'), ('--check', '--pretraining'), ('--training', 'config.py', '--check')):
        assert run_tool(monkeypatch, capsys, source, target, '--force', *option)[0] == 2
    status, out, err = run_tool(monkeypatch, capsys, source, target)
    assert status == 1 and 'exists: choose another name, or overwrite it with --force' in err
    status, out, err = run_tool(monkeypatch, capsys, source, tmp_path / 'target.onnx')
    assert status == 1 and 'must end in .safetensors, .pth, .pt, .bin' in err
    status, out, err = run_tool(monkeypatch, capsys, source, tmp_path / 'nowhere' / 'target.pth')
    assert status == 1 and 'nowhere' in err and 'Traceback' not in err


def test_norms_of_a_detector_go_where_there_is_a_place(tmp_path):
    """A detector's four output norms go to Hugging Face's backbone whole; other layouts keep the last or none, and the
    report names those that were left out."""
    source, weights = str(tmp_path / 'source.pth'), make(out_norm=True, out_indices=(0, 1, 2, 3))
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in weights.items()}), source)
    for layout, dropped in (('huggingface', ()), ('timm', (0, 1, 2)), ('official-sparse', (0, 1, 2, 3))):
        target = str(tmp_path / f'{layout}.pth')
        lines = convert_file(source, target, layout).partition(f'{2 * len(dropped)} dropped')[2].split()
        assert lines == [f'backbone.norm{stage}.{leaf}' for stage in dropped for leaf in ('weight', 'bias')]
        found = to_canonical(extract_state_dict(load_file(target)))
        assert set(weights) - set(found) == {line[len('backbone.') :] for line in lines}
        assert 'same bits' in check_conversion(source, target)


def test_safetensors_hold_whole_tensors(tmp_path):
    """Weights that are views of one storage go into both kinds of file, without the rest of the storage."""
    weights, source = make(), str(tmp_path / 'source.pth')
    names = [name for name, value in weights.items() if value.shape == (16,)]
    joined = torch.cat([weights[name] for name in names] + [torch.zeros(1 << 20)])
    weights.update(zip(names, joined.split(16)))
    torch.save(weights, source)
    for suffix in ('safetensors', 'pth'):
        target = str(tmp_path / f'target.{suffix}')
        convert_file(source, target, 'official-dense')
        found = to_canonical(extract_state_dict(load_file(target)))
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        assert os.path.getsize(target) < 1 << 20 < os.path.getsize(source)
