"""Files that mmengine and the official code write are read; whatever else a file calls is refused before it runs."""

import argparse
import io
import json
import math
import os
import resource
import struct
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from mmconvnextv2.checkpoint.load import load_file


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def rewrite(path, target, change):
    """Copy an archive with ``change(name, content)`` applied to each entry."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, 'w') as copy:
        for entry in source.infolist():
            copy.writestr(entry, change(entry.filename, source.read(entry)))


@pytest.mark.parametrize('modern', [True, False], ids=['archive', 'legacy'])
def test_crafted_pickle_does_not_run(tmp_path, modern):
    """A pickle that would make a folder is refused by name before it does; loaded without care, it does."""
    path, trace = str(tmp_path / 'crafted.pth'), tmp_path / 'trace'
    torch.save(dict(state_dict=Call(os.mkdir, str(trace))), path, _use_new_zipfile_serialization=modern)
    with pytest.raises(ValueError, match='posix.mkdir'):
        load_file(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    'call, name',
    [
        (Call(eval, '1'), 'eval'),
        (Call(getattr, HistoryBuffer, '__init__'), r"getattr\(.*'__init__'"),
        (Call(getattr, 'text', 'format'), r"getattr\('text', 'format'"),
        (Call(bytes, 10), r'bytes\(10'),
        (Call(np.dtype, 'O'), r"numpy.dtype\('O'"),
        (Call(subprocess.Popen, ['true']), 'Popen'),
        (Call(argparse.ArgumentParser), 'ArgumentParser'),
        (Call(types.SimpleNamespace), 'SimpleNamespace'),
    ],
    ids=['eval', 'HistoryBuffer.__init__', 'str.format', 'bytes(10)', 'object dtype', 'Popen', 'argparse', 'types'],
)
def test_allow_list_is_narrow(tmp_path, call, name):
    """Globals outside the list, and wider uses of those for which the list has stand-ins, are refused."""
    path = str(tmp_path / 'crafted.pth')
    torch.save(dict(state_dict=call), path)
    with pytest.raises(ValueError, match=name):
        load_file(path)


@pytest.mark.parametrize('module', [b'numpy._core', b'numpy.core'])
def test_reads_what_mmengine_writes(tmp_path, module):
    """History buffers, filled and empty, arrays and scalars come back equal, under both names of numpy's core."""
    path, renamed = tmp_path / 'a.pth', tmp_path / 'b.pth'
    filled = HistoryBuffer([1.5, 2.5], [1, 1])
    torch.save(
        dict(
            filled=filled,
            empty=HistoryBuffer(),
            scalar=np.float32(0.1),
            flag=np.bool_(True),
            array=np.arange(6, dtype=np.uint8).reshape(2, 3),
            args=argparse.Namespace(lr=0.1),
        ),
        path,
    )

    def rename(name, content):
        is_pickle = name.endswith('data.pkl')
        return content.replace(b'numpy._core', module).replace(b'numpy.core', module) if is_pickle else content

    rewrite(path, renamed, rename)
    content = load_file(str(renamed))
    assert content['filled'].mean() == 2 and content['filled'].statistics('max') == 2.5
    assert np.array_equal(content['filled'].data, filled.data) and len(content['empty'].data[0]) == 0
    assert content['scalar'] == np.float32(0.1) and content['flag'] and content['args'].lr == 0.1
    assert np.array_equal(content['array'], np.arange(6, dtype=np.uint8).reshape(2, 3))


def test_reading_leaves_the_allow_list_alone(tmp_path):
    """Reading a file neither widens nor narrows what the process allows."""
    path = str(tmp_path / 'a.pth')
    torch.save(dict(buffer=HistoryBuffer()), path)
    with torch.serialization.safe_globals([HistoryBuffer]):
        before = set(map(str, torch.serialization.get_safe_globals()))
        load_file(path)
        assert set(map(str, torch.serialization.get_safe_globals())) == before


def save_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def compressed(content):
    source, target = io.BytesIO(content), io.BytesIO()
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    return target.getvalue()


def announcing(numel, modern):
    """A file of four numbers whose pickle announces a storage of ``numel``."""
    buffer, target = io.BytesIO(), io.BytesIO()
    torch.save(dict(weight=torch.zeros(4)), buffer, _use_new_zipfile_serialization=modern)

    def announce(pickle):
        start = pickle.index(b'K\x04', pickle.index(b'cpu'))  # the first count behind the storage's location
        return pickle[:start] + b'\x8a\x06' + numel.to_bytes(6, 'little') + pickle[start + 2 :]

    if not modern:
        return announce(buffer.getvalue())
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(target, 'w') as copy:
        for name in archive.namelist():
            content = archive.read(name)
            copy.writestr(name, announce(content) if name.endswith('data.pkl') else content)
    return target.getvalue()


def safetensors_of(shape):
    """A safetensors file of 16 bytes whose header announces a tensor of another shape."""
    end = 4 * math.prod(shape)
    header = json.dumps(dict(weight=dict(dtype='F32', shape=shape, data_offsets=[0, end]))).encode()
    return struct.pack('<Q', len(header)) + header + bytes(16)


WEIGHTS = save_bytes(dict(weight=torch.zeros(100000)))
BIG_ENDIAN = (2).to_bytes(8, 'big') + b'{}'


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (WEIGHTS[: len(WEIGHTS) // 2], 'truncated or damaged'),
        (WEIGHTS[:-100], 'truncated or damaged'),
        (b'<!DOCTYPE html><html></html>', 'is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS pointer'),
        (b'not a checkpoint', 'begins with'),
        (compressed(WEIGHTS), 'zip bomb'),
        (BIG_ENDIAN, 'big-endian'),
        ((1000).to_bytes(8, 'little') + b'{"weight"', 'announces a header of 1000 bytes'),
        (b'\x80\x02}q\x00', 'truncated or damaged'),
        (save_bytes([1, 2]), 'holds a list'),
        (announcing(1 << 40, modern=True), 'announces tensors larger than the file'),
        (announcing(1 << 40, modern=False), 'announces tensors larger than the file'),
        (save_bytes(dict(weight=torch.zeros(1).expand(1 << 20, 1 << 20))), 'holds a tensor of shape .* zip bomb'),
        (save_bytes(dict(deep=[dict(weight=torch.zeros(1).expand(1 << 40))])), 'holds a tensor of shape .* zip bomb'),
        (safetensors_of([1 << 20]), 'truncated or damaged'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_damaged_files_are_named(tmp_path, content, message):
    """Empty, truncated, foreign, compressed and wrong-endian files, and those that announce more than they hold, raise
    an error that says which they are, without taking the memory."""
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        load_file(str(path))
    assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB


def test_other_byte_order_is_refused(tmp_path):
    """An archive that says it is of the other byte order is refused, not read as native."""
    path, swapped = tmp_path / 'a.pth', tmp_path / 'b.pth'
    path.write_bytes(WEIGHTS)
    other = b'big' if sys.byteorder == 'little' else b'little'
    rewrite(path, swapped, lambda name, content: other if name.endswith('/byteorder') else content)
    with pytest.raises(ValueError, match='byte order'):
        load_file(str(swapped))


def test_missing_file_is_named(tmp_path):
    """A path that is not there raises FileNotFoundError with the path."""
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        load_file(str(tmp_path / 'nowhere.pth'))


def test_safetensors(tmp_path):
    """A safetensors file is recognised by its content, whatever its name, and gives the same bits."""
    path, weights = str(tmp_path / 'weights.pth'), dict(weight=torch.randn(3, 4))
    save_file(weights, path)
    assert torch.equal(load_file(path)['weight'], weights['weight'])


@pytest.mark.parametrize('length', [128, 384, 640])
def test_safetensors_that_begin_as_a_pickle(tmp_path, length):
    """A header whose length has the lowest byte 0x80, a pickle's first, is read as safetensors all the same."""
    header = json.dumps(dict(weight=dict(dtype='F32', shape=[2], data_offsets=[0, 8]))).encode().ljust(length)
    path = tmp_path / 'odd.safetensors'
    path.write_bytes(struct.pack('<Q', length) + header + struct.pack('<2f', 1.5, -2))
    assert path.read_bytes()[0] == 0x80
    assert load_file(str(path))['weight'].tolist() == [1.5, -2]


MMENGINE = """
import sys, torch
from mmengine.runner import load_checkpoint
from mmconvnextv2.checkpoint.load import allow_mmengine_checkpoints
allow_mmengine_checkpoints()
allow_mmengine_checkpoints()
model = torch.nn.Linear(2, 2)
print(sorted(load_checkpoint(model, sys.argv[1])['meta']), model.weight.sum().item())
load_checkpoint(model, sys.argv[2])
"""


def test_mmengine_reads_through_the_allow_list(tmp_path):
    """mmengine's own loader reads its files without ``meta['config']``, which it would execute, and refuses others."""
    good, bad, trace = tmp_path / 'good.pth', tmp_path / 'bad.pth', tmp_path / 'trace'
    hub = dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])))
    torch.save(
        dict(
            meta=dict(cfg='a = 1', config='raise'),
            message_hub=hub,
            state_dict=dict(weight=torch.ones(2, 2), bias=torch.zeros(2)),
        ),
        good,
    )
    torch.save(dict(state_dict=Call(os.mkdir, str(trace))), bad)
    run = subprocess.run([sys.executable, '-c', MMENGINE, good, bad], capture_output=True, text=True)
    assert "['cfg'] 4.0" in run.stdout, run.stderr
    assert run.returncode != 0 and 'UserError: ' in run.stderr and 'posix.mkdir' in run.stderr
    assert not trace.exists()


def test_importing_the_package_changes_no_loader():
    """Importing the package alone leaves mmengine's loaders and torch's allow-list as they were."""
    code = (
        'import torch, mmconvnextv2; from mmengine.runner import CheckpointLoader as c; '
        'print(c._schemes[""].__module__, "HistoryBuffer" in str(torch.serialization.get_safe_globals()))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout.strip() == f'{CheckpointLoader.__module__} False', run.stderr


def test_shared_structures_are_walked_once(tmp_path):
    """Lists that hold the same list twice, forty deep, are read in an instant: 2 ** 40 paths, 40 objects."""
    nested = [torch.zeros(1)]
    for _ in range(40):
        nested = [nested, nested]
    torch.save(dict(nested=nested), tmp_path / 'nested.pth')
    assert 'nested' in load_file(str(tmp_path / 'nested.pth'))
