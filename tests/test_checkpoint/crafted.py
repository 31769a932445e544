"""Crafted checkpoints: pickles written opcode by opcode, and a fuzzer of them.

``python tests/test_checkpoint/crafted.py --minutes 60`` makes programs of the globals that files may name, with odd
arguments and states; whatever comes, reading gives plain values or a ``ValueError``.
"""

import argparse
import io
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch

from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.checkpoint.unpickling import DTYPES, HISTORY, NAMES, STORAGES, TENSOR_TYPES

HARMFUL = {'os.system', 'builtins.eval', 'numpy.load', 'torch.load', 'builtins.__import__', 'numpy.frombuffer'}
CALLABLE = sorted(NAMES - set(DTYPES) - set(STORAGES) - set(TENSOR_TYPES))


class Raw(bytes):
    """Opcodes that put one value on the stack."""


def dump(value):
    """Return the opcodes of a value, which may hold :class:`Raw` ones."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, tuple):
        return b'(' + b''.join(map(dump, value)) + b't'
    if isinstance(value, list):
        return b'](' + b''.join(map(dump, value)) + b'e'
    if isinstance(value, dict):
        return b'}(' + b''.join(dump(key) + dump(entry) for key, entry in value.items()) + b'u'
    if isinstance(value, bytes):
        return b'B' + struct.pack('<I', len(value)) + value
    return pickle.dumps(value, 2)[2:-1]


def named(path):
    """A global."""
    module, name = path.rsplit('.', 1)
    return Raw(f'c{module}\n{name}\n'.encode())


def call(path, *arguments):
    """A call of a global."""
    return Raw(named(path) + dump(arguments) + b'R')


def with_state(target, state):
    """An object that is given a state."""
    return Raw(target + dump(state) + b'b')


def new(path, state):
    """An object made without arguments and given a state."""
    return with_state(Raw(named(path) + b')\x81'), state)


def storage(key='0', kind='torch.FloatStorage', count=4):
    """A storage named by a tensor."""
    return Raw(dump(('storage', named(kind), key, 'cpu', count)) + b'Q')


def dtype(code='f8', state=(3, '<', None, None, None, -1, -1, 0)):
    """A dtype as numpy pickles it."""
    return with_state(call('numpy.dtype', code, False, True), state)


def array(shape, kind, content, core='numpy._core'):
    """An array as numpy pickles it."""
    begun = call(f'{core}.multiarray._reconstruct', named('numpy.ndarray'), (0,), b'b')
    return with_state(begun, (1, shape, kind, False, content))


def write(path, value, storages=(('0', bytes(16)),)):
    """Write an archive as ``torch.save`` does around the opcodes of a value."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('crafted/data.pkl', b'\x80\x02' + dump(value) + b'.')
        archive.writestr('crafted/byteorder', sys.byteorder)
        for key, content in storages:
            archive.writestr(f'crafted/data/{key}', content)


class Fuzzer:
    """Makes programs at random.

    Args:
        seed (int): Of the programs.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)

    def value(self, depth=0):
        """Any value: constants and objects that honest files hold, half of them not as honest files hold them."""
        makers = [self.constant, self.constant, self.constant]
        if depth < 4:
            makers += [self.container, self.container, self.call, self.honest, self.honest, self.state, self.shared]
        return self.random.choice(makers)(depth + 1)

    def constant(self, depth):
        """A number, a text or a name."""
        return self.random.choice(
            [
                None,
                True,
                0,
                1,
                4,
                -1,
                7,
                2**31,
                2**40,
                2**63,
                -(2**70),
                1e308,
                float('nan'),
                '',
                'latin1',
                'cpu',
                'f8',
                'V8',
                '<i4',
                'O',
                'min',
                '__class__',
                'x' * 100,
                b'',
                b'b',
                bytes(8),
                bytes(64),
                (0,),
                (4,),
                (2, 2),
                (2**40, 2),
                named(self.random.choice(sorted(NAMES | HARMFUL))),
                storage(),
                storage('1'),
                storage(count=2**38),
                dtype(),
                Raw(b'j\x00\x00\x00\x00'),
                Raw(b'h\x03'),
            ]
        )

    def container(self, depth):
        """A list, tuple, dict or set."""
        parts = [self.value(depth) for _ in range(self.random.randrange(4))]
        kind = self.random.randrange(4)
        if kind == 2:
            return Raw(b'}(' + b''.join(dump(part) + dump(self.value(depth)) for part in parts) + b'u')
        return [parts, tuple(parts), None, Raw(b'\x8f(' + b''.join(map(dump, parts)) + b'\x90')][kind]

    def call(self, depth):
        """A global called with anything."""
        return call(self.random.choice(CALLABLE), *(self.value(depth) for _ in range(self.random.randrange(7))))

    def honest(self, depth):
        """What honest files hold, at times with one part exchanged."""
        sizes = [(4,), (2, 2), (1,), (8,), (2**40,), (-1,), (0, 2**40)]
        kind, offset = self.pick(dtype(), dtype('i4'), depth), self.pick(0, 1, depth)
        shape, strides = self.pick(*self.random.choices(sizes, k=2), depth), self.pick((1,), (2, 1), depth)
        tensor = call('torch._utils._rebuild_tensor_v2', storage(), offset, shape, strides, False, {})
        values = array(self.pick((1,), (2,), depth), kind, self.pick(bytes(8), bytes(16), depth))
        state = dict(max_length=self.pick(10, 0, depth), _log_history=values, _count_history=values)
        return self.random.choice(
            [
                tensor,
                call('torch._utils._rebuild_parameter', self.pick(tensor, values, depth), True, {}),
                values,
                new(HISTORY, self.pick(state, {}, depth)),
                new('argparse.Namespace', self.pick(dict(lr=1), {1: 2}, depth)),
                call('numpy.core.multiarray.scalar', kind, self.pick(bytes(8), bytes(4), depth)),
                with_state(call('collections.OrderedDict'), self.pick(dict(_metadata={}), dict(keys=1), depth)),
                call('_codecs.encode', self.pick('\xff', 'x', depth), 'latin1'),
            ]
        )

    def state(self, depth):
        """A state given to anything."""
        return with_state(Raw(dump(self.value(depth))), self.value(depth))

    def shared(self, depth):
        """A value that is remembered, used, and recalled."""
        place = bytes([self.random.randrange(4)])
        return Raw(dump(self.value(depth)) + b'q' + place + dump(self.value(depth)) + b'h' + place + b'\x87')

    def pick(self, usual, other, depth):
        """The usual value, now and then another or any."""
        chance = self.random.random()
        return usual if chance < 0.8 else other if chance < 0.9 or depth > 3 else self.value(depth)

    def program(self):
        """A content, at times with bytes exchanged or cut."""
        content = bytearray(b'\x80\x02' + dump(dict(first=self.value(), second=self.value())) + b'.')
        for _ in range(self.random.choice([0, 0, 0, 1, 3])):
            content[self.random.randrange(len(content))] = self.random.randrange(256)
        return bytes(content[: self.random.randrange(len(content))] if self.random.random() < 0.05 else content)


def read_program(program, path):
    """Read a program; return 'read' or 'refused'. Values that are read can be printed, copied and saved."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('crafted/data.pkl', program)
        for key in '01':
            archive.writestr(f'crafted/data/{key}', bytes(16))
    try:
        content = load_file(path)
    except ValueError as error:
        assert str(path) in str(error) and '\n' not in str(error).strip(), error
        return 'refused'
    torch.save(content, io.BytesIO())
    return 'read'


def main():
    """Fuzz for a while; end at the first crash, growth or touched file."""
    parser = argparse.ArgumentParser(description='Fuzz the reader of checkpoints.')
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp()).resolve()
    path, touched = str(folder / 'crafted.pth'), []

    def watch(event, arguments):
        writes = event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+')
        if (
            writes
            and str(arguments[0]) != path
            or event.startswith(('subprocess', 'socket', 'shutil'))
            or event in ('os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.system')
        ):
            touched.append((event, str(arguments)))

    counts, seed, end = dict(read=0, refused=0), args.seed, time.time() + 60 * args.minutes
    for _ in range(200):  # imports and caches of the first readings
        read_program(Fuzzer(seed).program(), path)
        seed += 1
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.addaudithook(watch)
    while time.time() < end:
        program = Fuzzer(seed).program()
        before = time.time()
        counts[read_program(program, path)] += 1
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        if touched or grown > 1 << 17 or time.time() - before > 5:
            sys.exit(f'seed {seed}: touched {touched}, grown by {grown} KiB, {time.time() - before:.1f} s')
        seed += 1
    print(f'{counts["read"]} read, {counts["refused"]} refused, grown by {grown} KiB, nothing touched')


if __name__ == '__main__':
    main()
