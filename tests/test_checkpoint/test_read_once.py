"""A command reads each checkpoint file once and detects its layout once, however its functions are imported."""

import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from framework_models import NARROW
from mmengine.config import Config

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import detect_layout, from_canonical
from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.commands import convert
from mmconvnextv2.export.graphs import read_graph
from mmconvnextv2.export.libraries import export_safetensors, read_source
from mmconvnextv2.export.model_card import ModelCard

COUNTED = {load_file.__code__: 'path', detect_layout.__code__: None}


@contextmanager
def counting():
    """Yield the calls of ``load_file`` by file name, and of ``detect_layout``, found by their code objects."""
    calls = Counter()

    def watch(frame, event, _):
        if event == 'call' and frame.f_code in COUNTED:
            argument = COUNTED[frame.f_code]
            calls[frame.f_code.co_name if argument is None else frame.f_locals[argument].rpartition('/')[2]] += 1

    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def write_source(path, layout, head=False):
    """Write a narrow model's weights in a layout; return the path."""
    weights = from_canonical(ConvNeXtV2(NARROW, out_indices=(3,)).state_dict(), layout)
    if head:
        weights |= {'head.weight': torch.ones(5, 24), 'head.bias': torch.ones(5)}
    torch.save(dict(model=weights), path)
    return str(path)


@pytest.mark.parametrize('options', [(), ('--classifier',)])
@pytest.mark.parametrize('layout', ['canonical', 'timm', 'huggingface'])
def test_convert_and_check(tmp_path, capsys, layout, options):
    """``--check`` compares the source as it was converted: one reading and one detection for each of the two files."""
    source, target = write_source(tmp_path / 'source.pth', 'official-dense', bool(options)), str(tmp_path / 'out.pth')
    args = convert.parse_args([source, target, '--to', layout, '--check', *options])
    with counting() as calls:
        convert.convert(args)
    assert 'same bits' in capsys.readouterr().out
    assert calls == {'source.pth': 1, 'out.pth': 1, 'detect_layout': 2}


def test_pretraining_conversion(tmp_path, capsys):
    """A whole FCMAE model is read once and its layout detected once."""
    weights = ConvNeXtV2(NARROW, out_indices=(3,), out_norm=False).state_dict()
    source, target = str(tmp_path / 'source.pth'), str(tmp_path / 'out.pth')
    torch.save(dict(model=from_canonical(weights, 'official-sparse')), source)
    args = convert.parse_args([source, target, '--pretraining'])
    with counting() as calls:
        convert.convert(args)
    assert '0 dropped' in capsys.readouterr().out and calls == {'source.pth': 1, 'detect_layout': 1}


def test_exports(tmp_path):
    """Exports read the checkpoint once, for its weights and its class names; a written file is read back once."""
    source, config = write_source(tmp_path / 'source.pth', 'official-dense', head=True), tmp_path / 'config.py'
    config.write_text(f"default_scope = 'mmseg'\nmodel = dict(backbone=dict(type='ConvNeXtV2', arch={NARROW}))\n")
    with counting() as calls:
        read_graph(Config.fromfile(str(config)), source, 'backbone')
    assert calls == {'source.pth': 1, 'detect_layout': 1}
    pytest.importorskip('huggingface_hub')
    with counting() as calls:
        export_safetensors(read_source(source), str(tmp_path / 'out'), ModelCard('mit'))
    assert calls == {'source.pth': 1, 'model.safetensors': 1, 'detect_layout': 1}
