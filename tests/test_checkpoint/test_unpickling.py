"""What honest files hold comes back equal; whatever reaches beyond its memory, or takes more than the file has, is
refused before it is built."""

import argparse
import collections
import resource
import time

import numpy as np
import pytest
import torch
from crafted import Fuzzer, Raw, array, call, dtype, dump, named, new, read_program, storage, with_state, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from mmconvnextv2.checkpoint.load import load_file

V2 = 'torch._utils._rebuild_tensor_v2'
NESTED = Raw(b'X\x01\x00\x00\x00a' + b'q\x00h\x00\x86' * 60)  # a tuple of a value twice, sixty times
SUBARRAY = (3, '|', ('f8', (512,)), None, None, 4096, 1, 0)
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
CRAFTED = {
    'sub-array dtype': (array((1,), dtype('V8', SUBARRAY), bytes(8)), 'numpy.dtype'),
    'state of a dtype': (array((1,), dtype('f8', SUBARRAY), bytes(8)), 'numpy.dtype has the state'),
    'fields of a dtype': (dtype('f8', (3, '<', None, ('a',), {'a': 1}, 64, 1, 0)), 'numpy.dtype has the state'),
    'second state of a dtype': (with_state(dtype(), (3, '<', None, None, None, -1, -1, 0)), 'state'),
    'objects': (array((1,), dtype('O8'), bytes(8)), 'numpy.dtype'),
    'raw ndarray': (call('numpy.ndarray', (512,), 'f8'), 'numpy.ndarray'),
    'array beyond its bytes': (array((512,), dtype(), bytes(8)), 'does not match its bytes'),
    'array short of its bytes': (array((1,), dtype(), bytes(16)), 'does not match its bytes'),
    'array of negative size': (array((-1,), dtype(), bytes(8)), 'does not match its bytes'),
    'buffer from a number': (call('numpy._core.numeric._frombuffer', 3 << 30, dtype(), (1,), 'C'), 'no bytes'),
    'scalar beyond its bytes': (call('numpy._core.multiarray.scalar', dtype(), b'1'), 'no bytes'),
    'tensor beyond its storage': (call(V2, storage(), 0, (5,), (1,), False, {}), 'reaches beyond its storage'),
    'tensor behind its storage': (call(V2, storage(), 1, (4,), (1,), False, {}), 'reaches beyond its storage'),
    'strides beyond': (call(V2, storage(), 0, (2, 2), (3, 1), False, {}), 'reaches beyond its storage'),
    'negative offset': (call(V2, storage(), -1, (4,), (1,), False, {}), 'a tensor has offset -1'),
    'negative stride': (call(V2, storage(), 3, (4,), (-1,), False, {}), 'strides'),
    'huge sizes of nothing': (call(V2, storage(), 0, (0, 2**62), (1, 1), False, {}), 'shape'),
    'another dtype': (
        call('torch._utils._rebuild_tensor_v3', storage(), 0, (4,), (1,), False, {}, named('torch.float64')),
        'reaches beyond its storage',
    ),
    'state of a tensor': (
        with_state(call(V2, storage(), 0, (4,), (1,), False, {}), (storage(), 0, (99,), (1,))),
        '__setstate__',
    ),
    'storage beyond its entry': (call(V2, storage(count=5), 0, (1,), (1,), False, {}), 'announces tensors larger'),
    'storage of two sizes': ([storage(), storage(count=2)], 'two sizes'),
    'bytearray of a size': (call('builtins.bytearray', 3 << 30), 'bytearray'),
    'bytes of a size': (call('builtins.bytes', 3 << 30), 'bytes'),
    'nested key': (Raw(b'}' + NESTED + b'Ns'), 'a key is or holds a tuple'),
    'nested member of a set': (Raw(b'\x8f(' + NESTED + b'\x90'), 'a key is or holds a tuple'),
    'nested pair': (call('collections.OrderedDict', [(NESTED, 1)]), 'a key is or holds a tuple'),
    'deep': (Raw(b']' * 5000 + b'a' * 4999), 'deep'),
    'inside itself': (Raw(b']q\x00h\x00a'), 'holds itself'),
    'methods hidden by attributes': (with_state(call('collections.OrderedDict'), {'items': 1}), 'attributes'),
    'history of nothing': (new(HISTORY, {}), 'HistoryBuffer'),
    'history of another length': (
        new(
            HISTORY,
            dict(
                max_length=9,
                _log_history=array((1,), dtype(), bytes(8)),
                _count_history=array((2,), dtype(), bytes(16)),
            ),
        ),
        'HistoryBuffer',
    ),
    'call of a result': (Raw(call('builtins.getattr', named(HISTORY), 'mean') + b')R'), 'HistoryBuffer.mean'),
    'name as a value': (named('numpy.ndarray'), 'was found where a value was expected'),
    'state of a function': (with_state(named('numpy.dtype'), (None, {'__defaults__': ()})), '__setstate__'),
}


@pytest.mark.parametrize('value, message', CRAFTED.values(), ids=CRAFTED)
def test_crafted_files_are_refused(tmp_path, value, message):
    """Each way to read or write beyond a buffer, to take time or memory out of proportion, or to change an object of
    the process ends in one line, at once."""
    path = str(tmp_path / 'crafted.pth')
    write(path, dict(state_dict=value))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
    with pytest.raises(ValueError, match=message) as caught:
        load_file(path)
    assert path in str(caught.value) and '\n' not in str(caught.value)
    assert time.time() - start < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


def test_honest_opcodes_are_read(tmp_path):
    """What the table above forges is read where it is whole, so that each refusal is for the forgery."""
    path, numbers = str(tmp_path / 'honest.pth'), np.arange(4, dtype=np.float32)
    big = dtype('f8', (3, '>', None, None, None, -1, -1, 0))
    write(
        path,
        dict(
            array=array((2,), dtype(), np.arange(2.0).tobytes()),
            pair={('a', 1): 2},
            scalar=call('numpy.core.multiarray.scalar', dtype('i4'), b'\x05\0\0\0'),
            tensor=call(V2, storage(), 1, (2,), (2,), False, {}),
            big=array((1,), big, np.array([7.0], '>f8').tobytes()),
            history=new(
                HISTORY,
                dict(
                    max_length=9,
                    _log_history=array((1,), dtype(), bytes(8)),
                    _count_history=array((1,), dtype('i8'), bytes(8)),
                ),
            ),
        ),
        storages=[('0', numbers.tobytes())],
    )
    content = load_file(path)
    assert content['array'].tolist() == [0, 1] and content['array'].dtype == np.float64
    assert content['scalar'] == 5 and content['big'].tolist() == [7] and content['tensor'].tolist() == [1, 3]
    assert isinstance(content['history'], HistoryBuffer) and content['pair'] == {('a', 1): 2}


def equal(one, other):
    """Whether two contents are of the same types and values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.stride() == other.stride() and one.requires_grad == other.requires_grad
        return same and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, argparse.Namespace):
        return equal(vars(one), vars(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and not isinstance(one, torch.Size):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or one != one


def tensors(dtypes):
    def make(kind, shape, start):
        return torch.arange(np.prod(shape, dtype=int)).add(start).reshape(shape).to(kind)

    return st.builds(make, st.sampled_from(dtypes), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 100))


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.builds(bytearray, st.binary()),
    st.sets(st.integers()),
    st.builds(torch.Size, st.just((2, 3))),
    st.sampled_from(DTYPES),
    st.just(torch.device('cpu')),
    tensors(DTYPES),
    st.builds(torch.nn.Parameter, tensors(DTYPES[:4]), st.booleans()),
    st.builds(lambda values: np.array(values), st.lists(st.floats(), max_size=4)),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(argparse.Namespace, lr=st.floats()),
    st.builds(collections.Counter, st.text()),
)
KEYS = st.one_of(st.text(), st.integers(-(2**60), 2**60), st.none(), st.tuples(st.text(), st.integers(0, 9)))
CONTENTS = st.recursive(
    PLAIN,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.tuples(parts, parts),
        st.dictionaries(KEYS, parts, max_size=3),
        st.builds(collections.OrderedDict, st.dictionaries(KEYS, parts, max_size=3)),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=CONTENTS, modern=st.booleans(), protocol=st.integers(2, 5))
def test_whatever_is_saved_comes_back(tmp_path_factory, content, modern, protocol):
    """Containers, numbers, tensors and arrays come back with their types, in both formats of torch.save and all its
    protocols."""
    path = tmp_path_factory.getbasetemp() / 'saved.pth'
    torch.save(dict(content=content), path, _use_new_zipfile_serialization=modern, pickle_protocol=protocol)
    assert equal(load_file(str(path))['content'], content)


@pytest.mark.parametrize('modern', [True, False], ids=['archive', 'legacy'])
@pytest.mark.parametrize(
    'map_location',
    ['cpu', None, torch.device('cpu'), {'cpu': 'cpu'}, lambda storage, _: storage],
    ids=['cpu', 'None', 'device', 'dict', 'function'],
)
def test_shared_storages_and_strides(tmp_path, modern, map_location):
    """Views share memory after reading as before, with the strides and offsets they had, wherever they are read to."""
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save(
        dict(whole=whole, turned=whole.T[1:], requires=whole[0].clone().requires_grad_()),
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=modern,
    )
    content = load_file(str(tmp_path / 'a.pth'), map_location)
    assert content['turned'].stride() == (1, 4) and torch.equal(content['turned'], whole.T[1:])
    assert content['requires'].requires_grad
    content['whole'][0, 1] = 99
    assert content['turned'][0, 0] == 99


def test_optimizer_state_resumes(tmp_path):
    """AdamW's moments come back writable and separate, and step on as those that were never saved."""
    weight = torch.nn.Parameter(torch.arange(3.0))
    kept = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    kept.step()
    torch.save(dict(optimizer=kept.state_dict(), weight=weight), tmp_path / 'a.pth')
    content = load_file(str(tmp_path / 'a.pth'))
    other = content['weight']
    resumed = torch.optim.AdamW([other])
    resumed.load_state_dict(content['optimizer'])
    other.grad = torch.ones(3)
    for optimizer in (kept, resumed):
        optimizer.step()
    assert torch.equal(weight, other)


def test_random_programs(tmp_path):
    """Programs made of the allowed globals, with odd arguments, states and bytes, are read to plain values that can be
    saved again, or refused in one line; ``crafted.py --minutes 60`` goes on with it."""
    path, outcomes = str(tmp_path / 'crafted.pth'), collections.Counter()
    for seed in range(1500):
        program = Fuzzer(seed).program()
        outcomes[read_program(program, path)] += 1
    assert min(outcomes['read'], outcomes['refused']) > 100, outcomes


def test_dump_of_the_tests_is_pickle():
    """The opcodes that these tests write are those that pickle reads."""
    import pickle

    value = dict(a=[1, 2.5, None], b=('text', b'bytes', True), c={1: {}})
    assert pickle.loads(b'\x80\x03' + dump(value) + b'.') == value
