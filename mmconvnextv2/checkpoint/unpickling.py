"""Unpickler for checkpoints that never calls what a file names.

A pickle is a program. ``torch.load(weights_only=True)`` runs it with a list of allowed globals, several of which
(``numpy.dtype`` with its state, ``numpy.ndarray``, ``bytearray``) can build more than honest files hold. Here every
global is an inert :class:`Name`, and only the entries of :data:`CALLS` and :data:`STATES` are built: plain containers,
tensors inside their storages, numeric arrays exactly as large as their bytes, mmengine's ``HistoryBuffer`` and
``argparse.Namespace``. The standard library's ``pickletools`` decodes the opcodes.
"""

import argparse
import collections
import math
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

NUMERIC_CODE = re.compile(r'^[<>=|]?([?]|b1|[iufc]\d{1,2})$')
LOCATION = re.compile(r'^[a-z_]+(:\d+)?$')
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DEPTH = 100  # nested containers; files of OpenMMLab, timm and the official code stay below 10
MAX_DIM = 1 << 40
SPARE = 1 << 22  # bytes of memory that a small file may use beyond its own size
MARK = object()

FLOATS = dict(Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16)
INTEGERS = dict(
    Long=torch.int64, Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool
)
COMPLEX = dict(ComplexDouble=torch.complex128, ComplexFloat=torch.complex64)
STORAGES = {f'torch.{name}Storage': dtype for name, dtype in {**FLOATS, **INTEGERS, **COMPLEX}.items()}
STORAGES |= {'torch.storage.UntypedStorage': torch.uint8, 'torch.UntypedStorage': torch.uint8}
DTYPES = {f'torch.{name}': value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class Refused(ValueError):
    """Error for file contents that no honest checkpoint has."""


class NotAllowed(Refused):
    """Error for a forbidden global, or a forbidden use of an allowed one; the text is ``module.name(arguments)``."""


class Name:
    """A global named in a file; it is neither imported nor called."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return self.path


class Storage:
    """Memory of tensors, and the dtype of its entries unless a tensor overrides it."""

    def __init__(self, memory: Any, nbytes: int, dtype: torch.dtype) -> None:
        self.memory, self.nbytes, self.dtype = memory, nbytes, dtype


class Unfinished:
    """An array, dtype, HistoryBuffer or Namespace that a call or ``__new__`` creates and a later state completes."""

    def __init__(self, kind: str, dtype: np.dtype | None = None) -> None:
        self.kind, self.dtype = kind, dtype
        self.value: Any = None


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise Refused(text)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_DIM


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 64 and all(map(_is_count, values))


def _check_key(key: Any) -> None:
    """Allow only keys that hash in constant time: hashing a nested tuple can take unbounded time."""
    parts = key if type(key) is tuple else (key,)
    _require(len(parts) <= 16, 'a key is a tuple of many parts')
    for part in parts:
        small = type(part) is int and part.bit_length() <= 1024
        _require(
            small or part is None or type(part) in (str, float, bool, bytes),
            f'a key is or holds a {type(part).__name__}; keys are strings and numbers',
        )


class Machine:
    """Stack machine that runs the pickles of one file.

    Args:
        file_size (int): Size of the file in bytes; limits the memory of what is built.
        read_storage (callable): Returns a storage's memory for (key, bytes, location), filled now or later.
    """

    def __init__(self, file_size: int, read_storage: Callable[[str, int, str], Any]) -> None:
        self.read_storage = read_storage
        self.file_size = file_size
        self.left = {'copied': 4 * file_size + SPARE, 'tensors': 16 * file_size + SPARE, 'storages': file_size}
        self.storages: dict[str, Storage] = {}

    def take(self, kind: str, nbytes: int) -> None:
        """Count memory against the limit of the file."""
        self.left[kind] -= nbytes
        if self.left[kind] < 0:
            raise Refused('it announces tensors larger than the file has bytes for')

    def run(self, file: IO[bytes]) -> Any:
        """Return the object in a pickle; the file is then positioned after its end.

        Raises:
            Refused: For contents that no honest checkpoint has.
            ValueError: If the pickle is truncated or damaged.
        """
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == 'STOP':
                _require(len(self.stack) == 1, 'the pickle ends with more than one object')
                return _finish(self.stack.pop())
            step = getattr(self, f'op_{opcode.name.lower()}', None)
            if step is None:
                raise Refused(f'the pickle uses {opcode.name}, which torch.save does not')
            step(argument)
        raise ValueError('the pickle has no end')

    def call(self, name: Any, arguments: Any) -> Any:
        """Return the result of a call of an allowed global."""
        function = CALLS.get(name.path) if isinstance(name, Name) else None
        if function is None or not isinstance(arguments, tuple):
            raise NotAllowed(f'{_short(name)}{_short(arguments)}')
        try:
            return function(self, *arguments)
        except Refused:
            raise
        except Exception as error:  # wrong arguments
            raise NotAllowed(f'{name.path}{_short(arguments)}') from error

    def complete(self, target: Any, state: Any) -> Any:
        """Return an object completed by the state that the file gives it."""
        if type(target) is collections.OrderedDict:
            _require(
                type(state) is dict
                and state.keys() == {'_metadata'}
                and isinstance(state['_metadata'], dict)
                and all(isinstance(entry, dict) for entry in state['_metadata'].values()),
                'a dict has attributes',
            )
            target.__dict__.update(state)  # versions of modules, part of torch's state dicts
            return target
        if not isinstance(target, Unfinished):
            raise NotAllowed(f'__setstate__ of {_short(target)}')
        _require(target.value is None, f'a {target.kind} has two states')
        try:
            target.value = STATES[target.kind](self, target, state)
        except Refused:
            raise
        except Exception as error:
            raise Refused(f'the state of a {target.kind} is {_short(state)}') from error
        return target.value

    def storage(self, identity: Any) -> Storage:
        """Return the storage that a tensor refers to."""
        unknown = f'the storage {_short(identity)} is unknown'
        _require(
            isinstance(identity, tuple)
            and len(identity) in (5, 6)
            and identity[0] == 'storage'
            and identity[5:] in ((), (None,)),
            unknown,
        )
        _, kind, key, location, count = identity[:5]
        _require(
            isinstance(kind, Name)
            and kind.path in STORAGES
            and type(key) is str
            and _is_count(count)
            and type(location) is str
            and bool(LOCATION.match(location)),
            unknown,
        )
        dtype = STORAGES[kind.path]
        nbytes = count * dtype.itemsize
        known = self.storages.get(key)
        if known is None:
            self.take('storages', nbytes)
            known = self.storages[key] = Storage(self.read_storage(key, nbytes, location), nbytes, dtype)
        _require(known.nbytes == nbytes, f'storage {key} has two sizes')
        return Storage(known.memory, nbytes, dtype)

    # Opcodes, one method each; pickletools documents them.

    def pop(self) -> Any:
        """Pop the last value."""
        value = self.stack.pop()
        _require(value is not MARK, 'a value is missing')
        return value

    def pop_to_mark(self) -> list[Any]:
        """Pop the values after the last mark, and the mark."""
        values: list[Any] = []
        while True:
            value = self.stack.pop()
            if value is MARK:
                return values[::-1]
            values.append(value)

    def top(self, kind: type) -> Any:
        """Return the last value without popping it; it must be an instance of ``kind``."""
        value = self.stack[-1]
        _require(isinstance(value, kind), f'a {kind.__name__} was expected, found {type(value).__name__}')
        return value

    def push(self, value: Any) -> None:
        """Push a value; opcodes that carry a value do nothing else."""
        self.stack.append(value)

    op_int = op_binint = op_binint1 = op_binint2 = op_long = op_long1 = op_long4 = op_float = op_binfloat = push
    op_string = op_binstring = op_short_binstring = op_unicode = op_binunicode = op_short_binunicode = push
    op_binunicode8 = op_binbytes = op_short_binbytes = op_binbytes8 = op_bytearray8 = push

    def op_proto(self, _: Any) -> None:
        pass

    op_frame = op_proto

    def op_mark(self, _: Any) -> None:
        self.push(MARK)

    def op_pop(self, _: Any) -> None:
        self.stack.pop()

    def op_pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def op_none(self, _: Any) -> None:
        self.push(None)

    def op_newtrue(self, _: Any) -> None:
        self.push(True)

    def op_newfalse(self, _: Any) -> None:
        self.push(False)

    def op_empty_dict(self, _: Any) -> None:
        self.push({})

    def op_empty_list(self, _: Any) -> None:
        self.push([])

    def op_empty_set(self, _: Any) -> None:
        self.push(set())

    def op_empty_tuple(self, _: Any) -> None:
        self.push(())

    def op_tuple(self, _: Any) -> None:
        self.push(tuple(self.pop_to_mark()))

    def op_tuple1(self, _: Any) -> None:
        self.push((self.pop(),))

    def op_tuple2(self, _: Any) -> None:
        last = self.pop()
        self.push((self.pop(), last))

    def op_tuple3(self, _: Any) -> None:
        last = self.pop()
        second = self.pop()
        self.push((self.pop(), second, last))

    def op_list(self, _: Any) -> None:
        self.push(self.pop_to_mark())

    def op_dict(self, _: Any) -> None:
        pairs = self.pop_to_mark()
        self.push({})
        self.set_items(pairs)

    def set_items(self, pairs: list[Any]) -> None:
        """Set items of the dict on top of the stack."""
        target = self.top(dict)
        _require(len(pairs) % 2 == 0, 'a key has no value')
        for key, value in zip(pairs[::2], pairs[1::2]):
            _check_key(key)
            target[key] = value

    def op_setitem(self, _: Any) -> None:
        value = self.pop()
        key = self.pop()
        self.set_items([key, value])

    def op_setitems(self, _: Any) -> None:
        self.set_items(self.pop_to_mark())

    def op_append(self, _: Any) -> None:
        value = self.pop()
        self.top(list).append(value)

    def op_appends(self, _: Any) -> None:
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def op_additems(self, _: Any) -> None:
        values = self.pop_to_mark()
        for value in values:
            _check_key(value)
        self.top(set).update(values)

    def op_put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    op_binput = op_long_binput = op_put

    def op_memoize(self, _: Any) -> None:
        self.op_put(len(self.memo))

    def op_get(self, index: int) -> None:
        value = self.memo[index]
        finished = isinstance(value, Unfinished) and value.value is not None
        self.push(value.value if finished else value)

    op_binget = op_long_binget = op_get

    def op_global(self, path: str) -> None:
        path = path.replace(' ', '.', 1).replace('__builtin__.', 'builtins.', 1)
        if path not in NAMES:
            raise NotAllowed(path)
        self.push(DTYPES[path] if path in DTYPES else Name(path))

    def op_stack_global(self, _: Any) -> None:
        name = self.pop()
        module = self.pop()
        _require(type(name) is str and type(module) is str, 'a global has no name')
        self.op_global(f'{module} {name}')

    def op_reduce(self, _: Any) -> None:
        arguments = self.pop()
        self.push(self.call(self.pop(), arguments))

    def op_newobj(self, _: Any) -> None:
        arguments = self.pop()
        name = self.pop()
        if not isinstance(name, Name) or name.path not in OBJECTS or arguments != ():
            raise NotAllowed(f'{_short(name)}{_short(arguments)}')
        self.push({} if OBJECTS[name.path] == 'dict' else Unfinished(OBJECTS[name.path]))

    def op_build(self, _: Any) -> None:
        state = self.pop()
        self.push(self.complete(self.pop(), state))

    def op_binpersid(self, _: Any) -> None:
        self.push(self.storage(self.pop()))


def _short(value: Any) -> str:
    """Describe a value in at most some 200 characters, whatever its depth."""
    if isinstance(value, Unfinished):
        return value.kind
    if isinstance(value, (Name, str, bytes, int, float, bool, type(None))):
        text = repr(value)
    elif type(value) is tuple:
        parts = [_short(part) if type(part) is not tuple else '(...)' for part in value[:6]]
        text = f'({", ".join(parts)})'
    else:
        text = f'<{type(value).__name__}>'
    return text if len(text) <= 200 else f'{text[:200]}...'


# Results of calls


def _ordered_dict(machine: Machine, pairs: Any = ()) -> dict:
    _require(type(pairs) in (list, tuple), 'an OrderedDict has no pairs')
    machine.take('copied', 64 * len(pairs))
    for pair in pairs:
        _require(type(pair) in (list, tuple) and len(pair) == 2, 'an OrderedDict has no pairs')
        _check_key(pair[0])
    return collections.OrderedDict(pairs)


def _counter(machine: Machine, counts: Any) -> dict:
    _require(type(counts) is dict, 'a Counter has no counts')
    machine.take('copied', 64 * len(counts))
    return collections.Counter(counts)


def _set(kind: type) -> Callable:
    def build(machine: Machine, values: Any = ()) -> Any:
        _require(type(values) in (list, tuple), 'a set has no values')
        machine.take('copied', 64 * len(values))
        for value in values:
            _check_key(value)
        return kind(values)

    return build


def _encode(machine: Machine, text: str, encoding: str = 'utf-8') -> bytes:
    """Replace ``_codecs.encode``, which protocol 2 uses because it has no opcode for bytes."""
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise NotAllowed(f'_codecs.encode{_short((text, encoding))}')
    machine.take('copied', len(text))
    return text.encode('latin-1')


def _bytes(kind: type) -> Callable:
    def build(machine: Machine, content: Any = b'', encoding: str = 'latin-1') -> Any:
        if type(content) is str and encoding in ('latin1', 'latin-1'):
            content = content.encode('latin-1')
        if type(content) is not bytes:
            raise NotAllowed(f'{kind.__name__}{_short((content,))}')
        machine.take('copied', len(content))
        return kind(content)

    return build


def _path(machine: Machine, *parts: str) -> str:
    """Return a path among hyperparameters as text."""
    _require(all(type(part) is str for part in parts), 'a path has no parts')
    machine.take('copied', sum(map(len, parts)))
    return '/'.join(parts)


def _complex(machine: Machine, real: float, imaginary: float) -> complex:
    _require(type(real) is float and type(imaginary) is float, 'a complex number has no parts')
    return complex(real, imaginary)


def _getattr(machine: Machine, owner: Any, name: Any) -> Name:
    """Replace ``builtins.getattr``, allowed only for ``HistoryBuffer``, which registers its statistics again anyway."""
    if not (isinstance(owner, Name) and owner.path == HISTORY and name in ('min', 'max', 'current', 'mean')):
        raise NotAllowed(f'getattr({_short(owner)}, {_short(name)})')
    return Name(f'{HISTORY}.{name}')


def _size(machine: Machine, sizes: tuple = ()) -> torch.Size:
    _require(_are_counts(sizes), f'torch.Size{_short(sizes)} is not a size')
    return torch.Size(sizes)


def _device(machine: Machine, kind: str, index: int | None = None) -> torch.device:
    _require(type(kind) is str and (index is None or _is_count(index)), 'a device has no name')
    return torch.device(kind) if index is None else torch.device(kind, index)


def _tensor(
    machine: Machine,
    storage: Storage,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """Return a tensor, checked to lie inside its storage."""
    return _view(machine, storage, offset, size, stride, requires_grad, storage.dtype, metadata)


def _tensor_of_dtype(
    machine: Machine,
    storage: Storage,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool,
    hooks: Any,
    dtype: torch.dtype,
    metadata: Any = None,
) -> Tensor:
    """Return a tensor of a dtype that has no storage class."""
    return _view(machine, storage, offset, size, stride, requires_grad, dtype, metadata)


def _view(
    machine: Machine,
    storage: Storage,
    offset: int,
    size: tuple,
    stride: tuple,
    requires_grad: bool,
    dtype: torch.dtype,
    metadata: Any,
) -> Tensor:
    _require(
        isinstance(storage, Storage)
        and isinstance(dtype, torch.dtype)
        and type(requires_grad) is bool
        and metadata in (None, {}),
        'a tensor has no storage, dtype or sizes',
    )
    _require(
        _is_count(offset) and _are_counts(size) and _are_counts(stride) and len(size) == len(stride),
        f'a tensor has offset {_short(offset)}, shape {_short(size)} and strides {_short(stride)}',
    )
    count = math.prod(size)
    last = sum((length - 1) * step for length, step in zip(size, stride)) + 1 if count else 0
    nbytes = count * dtype.itemsize
    _require(
        nbytes <= machine.file_size,
        f'it has {machine.file_size} bytes and holds a tensor of shape {size}, {nbytes} bytes',
    )
    _require(
        (offset + last) * dtype.itemsize <= storage.nbytes,
        f'a tensor of shape {size} with strides {stride} at {offset} reaches beyond its storage of '
        f'{storage.nbytes} bytes',
    )
    machine.take('tensors', nbytes)
    tensor = torch.empty(0, dtype=dtype, device=storage.memory.device)
    tensor.set_(storage.memory, offset, size, stride)
    return tensor.requires_grad_(requires_grad and (dtype.is_floating_point or dtype.is_complex))


def _parameter(
    machine: Machine, data: Tensor, requires_grad: bool, hooks: Any = None, state: Any = None
) -> nn.Parameter:
    _require(type(data) is Tensor and type(requires_grad) is bool, 'a parameter holds no tensor')
    return nn.Parameter(data.detach(), requires_grad and (data.is_floating_point() or data.is_complex()))


def _tensor_with_attributes(machine: Machine, function: Name, kind: Name, arguments: tuple, state: Any) -> Tensor:
    """Return a tensor or parameter that was saved with Python attributes, without the attributes."""
    names = {name.path for name in (function, kind) if isinstance(name, Name)}
    _require(
        len(names) == 2 and names <= {*TENSORS, *TENSOR_TYPES} and isinstance(arguments, tuple),
        'a tensor is of an unknown type',
    )
    return CALLS[function.path](machine, *arguments)


def _numpy_dtype(machine: Machine, code: str, align: bool = False, copy: bool = True) -> Unfinished:
    """Return a dtype of booleans, integers, floats or complex numbers; others are not allowed."""
    if type(code) is not str or not NUMERIC_CODE.match(code):
        raise NotAllowed(f'numpy.dtype({_short(code)})')
    return Unfinished('numpy.dtype', np.dtype(code))


def _array_to_fill(machine: Machine, subtype: Name, shape: tuple, code: Any) -> Unfinished:
    """Replace numpy's ``_reconstruct``, allowed only for the empty array whose state follows in the file."""
    if not (isinstance(subtype, Name) and subtype.path == 'numpy.ndarray' and shape == (0,)):
        raise NotAllowed(f'numpy _reconstruct{_short((subtype, shape))}')
    return Unfinished('numpy.ndarray')


def _array_of_buffer(machine: Machine, buffer: Any, dtype: Any, shape: tuple, order: str = 'C') -> np.ndarray:
    """Replace numpy's ``_frombuffer`` of protocol 5."""
    _require(type(buffer) in (bytes, bytearray), 'an array has no bytes')
    return _array(machine, None, (1, shape, dtype, order == 'F', bytes(buffer)))


def _scalar(machine: Machine, dtype: Any, content: bytes) -> Any:
    dtype = _finish_dtype(dtype)
    _require(type(content) is bytes and len(content) == dtype.itemsize, 'a number has no bytes')
    return np.frombuffer(content, dtype)[0]


# Objects completed by a state


def _finish_dtype(dtype: Any) -> np.dtype:
    """Return a dtype, even if the state of its ``numpy.dtype`` is missing."""
    if isinstance(dtype, Unfinished) and dtype.kind == 'numpy.dtype':
        dtype = dtype.value if dtype.value is not None else dtype.dtype
    _require(isinstance(dtype, np.dtype), f'{_short(dtype)} is not a dtype')
    return dtype


def _dtype(machine: Machine, target: Unfinished, state: tuple) -> np.dtype:
    """Return a dtype in the byte order of its state; fields and sub-arrays are refused."""
    _require(
        type(state) is tuple
        and len(state) in (8, 9)
        and state[1] in ('<', '>', '=', '|')
        and state[2:5] == (None, None, None)
        and state[5:7] == (-1, -1),
        f'numpy.dtype has the state {_short(state)}',
    )
    return _finish_dtype(target).newbyteorder(state[1])


def _array(machine: Machine, target: Any, state: tuple) -> np.ndarray:
    """Return an array, checked to have exactly the bytes that its shape and dtype require."""
    _require(type(state) is tuple and len(state) == 5, 'an array has no shape')
    version, shape, dtype, fortran, content = state
    dtype = _finish_dtype(dtype)
    _require(
        version == 1
        and _are_counts(shape)
        and len(shape) <= 32
        and type(content) is bytes
        and len(content) == math.prod(shape) * dtype.itemsize,
        f'a {dtype} array of shape {_short(shape)} does not match its bytes',
    )
    machine.take('copied', len(content))
    array = np.frombuffer(content, dtype).copy()
    return array.reshape(shape, order='F' if fortran is True or fortran == 1 else 'C')


def _history(machine: Machine, target: Unfinished, state: dict) -> HistoryBuffer:
    """Return mmengine's buffer with the statistics of its class."""
    _require(type(state) is dict, 'a HistoryBuffer has no history')
    values, counts, length = state['_log_history'], state['_count_history'], state['max_length']
    _require(
        all(isinstance(part, np.ndarray) and part.ndim == 1 for part in (values, counts))
        and len(values) == len(counts)
        and _is_count(length),
        'a HistoryBuffer has no history',
    )
    return HistoryBuffer(values, counts, length)


def _namespace(machine: Machine, target: Unfinished, state: dict) -> argparse.Namespace:
    _require(
        type(state) is dict and all(type(key) is str and not key.startswith('_') for key in state),
        'a Namespace has no names',
    )
    return argparse.Namespace(**state)


HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
OBJECTS = {
    HISTORY: 'HistoryBuffer',
    'argparse.Namespace': 'Namespace',
    **{
        f'{module}.AttributeDict': 'dict'
        for module in (  # Lightning's hyperparameters
            'pytorch_lightning.utilities.parsing',
            'lightning.pytorch.utilities.parsing',
            'lightning_fabric.utilities.data',
            'lightning.fabric.utilities.data',
        )
    },
}
STATES: dict[str, Callable] = {
    'numpy.dtype': _dtype,
    'numpy.ndarray': _array,
    'HistoryBuffer': _history,
    'Namespace': _namespace,
}
TENSORS: dict[str, Callable] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
}
TENSOR_TYPES = ('torch.Tensor', 'torch._tensor.Tensor', 'torch.nn.parameter.Parameter')
CALLS: dict[str, Callable] = {
    'collections.OrderedDict': _ordered_dict,
    'collections.Counter': _counter,
    'builtins.set': _set(set),
    'builtins.frozenset': _set(frozenset),
    'builtins.bytes': _bytes(bytes),
    'builtins.bytearray': _bytes(bytearray),
    'builtins.complex': _complex,
    'builtins.getattr': _getattr,
    '_codecs.encode': _encode,
    'torch.Size': _size,
    'torch.device': _device,
    **TENSORS,
    'torch._tensor._rebuild_from_type_v2': _tensor_with_attributes,
    'numpy.dtype': _numpy_dtype,
}
CALLS |= {
    f'{module}.{kind}Path': _path for module in ('pathlib', 'pathlib._local') for kind in ('Posix', 'Windows', '')
}
for _core in ('numpy.core', 'numpy._core'):
    CALLS |= {
        f'{_core}.multiarray._reconstruct': _array_to_fill,
        f'{_core}.multiarray.scalar': _scalar,
        f'{_core}.numeric._frombuffer': _array_of_buffer,
    }
NAMES = {*CALLS, *OBJECTS, *STORAGES, *DTYPES, *TENSOR_TYPES, 'numpy.ndarray'}


def _finish(content: Any) -> Any:
    """Check that nothing is unfinished, contains itself or is nested too deep."""
    if isinstance(content, Unfinished):
        content = content.value
    done, path = set(), set()
    waiting: list[tuple[Any, bool]] = [(content, False)]
    while waiting:
        item, leaving = waiting.pop()
        if leaving:
            path.discard(id(item))
            done.add(id(item))
            continue
        _require(
            not isinstance(item, (Name, Storage, Unfinished)) and item is not MARK,
            f'{_short(item)} was found where a value was expected',
        )
        parts = _parts(item)
        if not parts or id(item) in done:
            continue
        _require(id(item) not in path, 'a container holds itself')
        path.add(id(item))
        _require(len(path) <= MAX_DEPTH, f'containers are nested more than {MAX_DEPTH} deep')
        waiting.append((item, True))
        waiting += [(part, False) for part in parts]
    return content


def _parts(item: Any) -> Any:
    """Return the items of a container."""
    if isinstance(item, dict):
        extra = getattr(item, '_metadata', None)
        return [*item.values(), *([] if extra is None else [extra])]
    if isinstance(item, argparse.Namespace):
        return list(vars(item).values())
    return item if isinstance(item, (list, tuple)) and not isinstance(item, torch.Size) else ()


# Files


def read_pickled(path: str, map_location: Any = 'cpu') -> Any:
    """Return the content of a file of ``torch.save``, in the archive format or the one before torch 1.6.

    Args:
        path (str): A local file.
        map_location: As in ``torch.load``.

    Raises:
        Refused: For contents that no honest checkpoint has.
        ValueError: If the file is truncated or damaged.
    """
    with open(path, 'rb') as file:
        size = file.seek(0, 2)
        file.seek(0)
        if file.read(4) == b'PK\x03\x04':
            return _read_archive(file, size, map_location)
        file.seek(0)
        return _read_legacy(file, size, map_location)


def _read_archive(file: IO[bytes], size: int, map_location: Any) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        _require(len(entries) == len(archive.infolist()), 'two entries of the archive have one name')
        pickles = [name for name in entries if name.endswith('/data.pkl')]
        _require(
            len(pickles) == 1 and not any(name.endswith('/constants.pkl') for name in entries),
            'it is TorchScript, or holds several pickles',
        )
        folder = pickles[0][: -len('data.pkl')]

        def read_storage(key: str, nbytes: int, location: str) -> torch.UntypedStorage:
            entry = entries.get(f'{folder}data/{key}')
            if entry is None:
                raise Refused(f'storage {key} is not in the archive')
            if entry.file_size != nbytes:
                raise Refused(
                    'it announces tensors larger than the file has bytes for'
                    if entry.file_size < nbytes
                    else f'storage {key} has {entry.file_size} bytes, not {nbytes}'
                )
            with archive.open(entry) as source:
                return _place(_fill(source, nbytes), location, map_location)

        with archive.open(entries[pickles[0]]) as source:
            return Machine(size, read_storage).run(source)


def _read_legacy(file: IO[bytes], size: int, map_location: Any) -> Any:
    """Read the old format: three pickles about the file, one of the content, one of storage keys, then the bytes."""
    memories: dict[str, Tensor] = {}

    def make_storage(key: str, nbytes: int, location: str) -> torch.UntypedStorage:
        memories[key] = torch.zeros(nbytes, dtype=torch.uint8)
        return memories[key].untyped_storage()

    def place_storage(key: str, nbytes: int, location: str) -> torch.UntypedStorage:
        return _place(memories[key].untyped_storage(), location, map_location)

    machine = Machine(size, make_storage)
    _require(
        machine.run(file) == LEGACY_MAGIC and machine.run(file) == LEGACY_PROTOCOL,
        'torch.save did not write this pickle',
    )
    system = machine.run(file)
    _require(
        isinstance(system, dict) and system.get('little_endian') is (sys.byteorder == 'little'),
        'it is of another byte order',
    )
    start = file.tell()
    content = machine.run(file)
    keys = machine.run(file)
    _require(
        isinstance(keys, list) and all(type(key) is str for key in keys) and sorted(keys) == sorted(memories),
        'it lists other storages than its tensors have',
    )
    for key in keys:
        storage = machine.storages[key]
        count = int.from_bytes(file.read(8), 'little', signed=True)
        _require(count * storage.dtype.itemsize == storage.nbytes, f'storage {key} has another size than its tensors')
        _read_into(file, memories[key])
    if map_location == 'cpu':
        return content
    file.seek(start)  # again, now that the storages are filled and can be moved
    return Machine(size, place_storage).run(file)


def _fill(source: IO[bytes], nbytes: int) -> torch.UntypedStorage:
    memory = torch.empty(nbytes, dtype=torch.uint8)
    _read_into(source, memory)
    return memory.untyped_storage()


def _read_into(source: IO[bytes], memory: Tensor) -> None:
    view = memory.numpy().data
    start = 0
    while start < len(view):
        chunk = source.read(min(len(view) - start, 1 << 24))
        if not chunk:
            raise EOFError('the file ends inside a tensor')
        view[start : start + len(chunk)] = chunk
        start += len(chunk)


def _place(storage: torch.UntypedStorage, location: str, map_location: Any) -> torch.UntypedStorage:
    """Move a storage to ``map_location``, as ``torch.load`` does."""
    if callable(map_location):
        placed = map_location(storage, location)
        return storage if placed is None else placed
    if isinstance(map_location, dict):
        map_location = map_location.get(location, location)
    device = torch.device(location if map_location is None else map_location)
    if device.type == 'cpu':
        return storage
    return torch.empty(0, dtype=torch.uint8).set_(storage).to(device).untyped_storage()
