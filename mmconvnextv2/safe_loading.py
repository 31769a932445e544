"""Reading checkpoint files without running code from them.

torch >= 2.6 unpickles with an allow-list; mmengine 0.10's own checkpoints (HistoryBuffer, numpy arrays) and those of
the official code (argparse.Namespace) need a few more globals. Upstream answers are to allow whole modules or to switch
the protection off; here the additions are exact, and whatever is wider than its use has a narrow stand-in.
"""
import argparse
import json
import os
import re
import sys
import zipfile
from contextlib import contextmanager
from typing import Any, Iterator, List, Tuple

import numpy as np
import torch
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from .download import download

try:
    from numpy._core import multiarray
except ImportError:  # numpy < 2
    from numpy.core import multiarray

NUMERIC_CODE = re.compile(r'^[<>=|]?([?]|b1|[iufc]\d{1,2})$')
SAFETENSORS_MAX_HEADER = 100_000_000
DAMAGED = 'it is truncated or damaged: copy or download it again'


def history_buffer_method(owner: Any, name: str) -> Any:
    """Stand in for ``builtins.getattr``, which mmengine's files use for ``HistoryBuffer.min`` and the like.

    Raises:
        ValueError: If anything but a registered statistic of ``HistoryBuffer`` is asked for.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise ValueError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(HistoryBuffer, name)


def empty_bytes(*arguments: Any) -> bytes:
    """Stand in for ``builtins.bytes``, which files call without arguments for empty arrays."""
    if arguments:
        raise ValueError(f'bytes{arguments!r} is not allowed in a checkpoint')
    return b''


def numeric_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    """Stand in for ``numpy.dtype``: booleans, integers, floats and complex numbers only."""
    if not isinstance(code, str) or not NUMERIC_CODE.match(code):
        raise ValueError(f'numpy.dtype({code!r}) is not allowed in a checkpoint')
    return np.dtype(code, align=bool(align), copy=bool(copy))


def empty_array(subtype: type, shape: tuple, code: bytes) -> np.ndarray:
    """Stand in for numpy's ``_reconstruct``: only the empty array whose state follows in the file."""
    if subtype is not np.ndarray or shape != (0, ):
        raise ValueError(f'numpy _reconstruct({subtype!r}, {shape!r}) is not allowed in a checkpoint')
    return multiarray._reconstruct(np.ndarray, (0, ), b'b')


def allowed_globals() -> List[Tuple[Any, str]]:
    """List (object, name in the file) of every global allowed beyond torch's own."""
    allowed = [
        (argparse.Namespace, 'argparse.Namespace'),
        (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (history_buffer_method, 'builtins.getattr'),
        (empty_bytes, 'builtins.bytes'),
        (np.ndarray, 'numpy.ndarray'),
        (numeric_dtype, 'numpy.dtype'),
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(empty_array, f'{module}._reconstruct'), (multiarray.scalar, f'{module}.scalar')]
    numeric_types = {type(np.dtype(code)) for code in np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?'}
    return allowed + [(kind, f'numpy.dtypes.{kind.__name__}') for kind in numeric_types]


@contextmanager
def _allow_while_reading() -> Iterator[None]:
    """Allow :func:`allowed_globals` for a while; leave those that were allowed before as they are."""
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([item for item in allowed_globals() if item not in before]):
        yield


def load_file(path: str, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint from a local path, a URL or another of mmengine's file backends.

    Args:
        path (str): A ``.pth``, ``.pt`` or ``.safetensors`` file; the kind is told from the content. ``http(s)://``
            goes through torch's download cache with a progress bar; a name that ends in the beginning of a SHA-256,
            ``...-d484685a.pth``, is verified. Other prefixes go through ``mmengine.fileio``.
        map_location: As in ``torch.load``. Defaults to 'cpu'.

    Returns:
        dict: What the file holds; for safetensors a flat state dict.

    Raises:
        FileNotFoundError: If a local file is not there.
        ValueError: If the file is empty, truncated, damaged, compressed, of another byte order or of another kind, if
            it announces more than it holds, or if its pickle asks for a global that is not allowed; no code of the
            file has run then.
    """
    with _local_copy(str(path)) as local:
        kind = _file_kind(local)
        if kind == 'safetensors':
            return _read_safetensors(local, map_location)
        if kind == 'zip':
            _check_archive(local)
        content = _read_pickle(local, map_location)
        _check_sizes(path, content, os.path.getsize(local))
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}: a checkpoint is a dict of weights')
    return content


@contextmanager
def _local_copy(path: str) -> Iterator[str]:
    if path.startswith(('http://', 'https://')):
        yield download(path)
    elif '://' in path:
        with get_local_path(path) as local:
            yield str(local)
    else:
        yield os.path.expanduser(path)


def _file_kind(path: str) -> str:
    """Tell 'zip' (torch >= 1.6), 'pickle' (older torch) and 'safetensors' apart by the first bytes."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {path!r} is not a file: check the path')
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f'{path} is empty (0 bytes): {DAMAGED}')
    with open(path, 'rb') as file:
        head = file.read(64)
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    fits = head[8:9] == b'{' and 8 + int.from_bytes(head[:8], 'little') <= size
    if head.startswith(b'\x80') and not fits:  # a safetensors header of 128, 384, .. bytes begins so too
        return 'pickle'
    if head[8:9] == b'{':
        _check_safetensors_header(path, head, size)
        return 'safetensors'
    raise ValueError(f'{path} is no checkpoint: {_describe_foreign(head)}; expected a file written by torch.save or a '
                     '.safetensors file')


def _describe_foreign(head: bytes) -> str:
    start = head.lstrip().lower()
    if start.startswith((b'<!doctype', b'<html')):
        return 'it is a web page'
    if start.startswith(b'version https://git-lfs'):
        return 'it is a Git LFS pointer, fetch the real file with `git lfs pull`'
    return f'it begins with {head[:8]!r}'


def _check_safetensors_header(path: str, head: bytes, size: int) -> None:
    length = int.from_bytes(head[:8], 'little')
    if 8 + length <= size and length <= SAFETENSORS_MAX_HEADER:
        return
    if 8 + int.from_bytes(head[:8], 'big') <= size:
        raise ValueError(f'{path} has its header length in big-endian order: write it again as little-endian, as the '
                         'safetensors format demands')
    raise ValueError(f'{path} announces a header of {length} bytes but has {size}: {DAMAGED}')


def _read_safetensors(path: str, map_location: Any) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors
    except ImportError as error:
        raise ValueError(f'{path} is a safetensors file: install the package safetensors to read it') from error
    try:
        return load_safetensors(path, device=str(map_location or 'cpu'))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({error}): {DAMAGED}') from error


def _check_archive(path: str) -> None:
    """Refuse what torch.save never writes: compressed or overlapping entries (a zip bomb), a foreign byte order."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            orders = [archive.read(entry) for entry in entries
                      if entry.filename.endswith('/byteorder') and entry.file_size < 16]
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f'{path} cannot be read as an archive ({error}): {DAMAGED}') from error
    total = sum(entry.file_size for entry in entries)
    if total > os.path.getsize(path) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f'{path} has {os.path.getsize(path)} bytes and unpacks to {total}: torch.save does not '
                         'compress, so this is refused as a possible zip bomb')
    if not any(entry.filename.endswith('/data.pkl') for entry in entries):
        raise ValueError(f'{path} is a zip archive without data.pkl: it was not written by torch.save')
    if any(order.decode('ascii', 'replace') != sys.byteorder for order in orders):
        raise ValueError(f'{path} is in byte order {orders[0]!r} and this machine is {sys.byteorder}-endian: save it '
                         'as safetensors on a machine of its own kind')


def _read_pickle(path: str, map_location: Any) -> Any:
    _check_torch(path)
    try:
        with _allow_while_reading():
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged or crafted file can raise anything; nothing of it has run
        raise ValueError(_explain(path, error)) from error


def _check_sizes(path: str, content: Any, file_size: int) -> None:
    """Refuse a tensor that is larger than its file: torch.save may store one value with stride 0 for any shape."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor) and item.numel() * item.element_size() > file_size:
            raise ValueError(f'{path} has {file_size} bytes and holds a tensor of shape {tuple(item.shape)}, '
                             f'{item.numel() * item.element_size()} bytes: refused as a possible zip bomb')
        if isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def _check_torch(path: str) -> None:
    found = tuple(int(part) for part in re.findall(r'\d+', torch.__version__)[:2])
    if found < (2, 6):
        raise ValueError(f'{path} is a pickle, and torch {torch.__version__} cannot read one safely: use torch >= 2.6, '
                         'or convert the file to .safetensors')


def _explain(path: str, error: Exception) -> str:
    text = str(error)
    wanted = (re.search(r'GLOBAL (\S+) was not an allowed', text) or re.search(r'unsupported GLOBAL (\S+)', text)
              or re.search(r'(\S+\(.*\)) is not allowed in a checkpoint', text))
    if wanted:
        return (f'{path} asks to run {wanted.group(1)!r}, which no checkpoint needs: refused, and none of it has run. '
                'Get the weights as .safetensors, or from a source that you trust')
    if "can't allocate memory" in text or 'does not match expected size' in text:
        return f'{path} announces tensors larger than the file has bytes for: refused as damaged or as a zip bomb'
    if 'PytorchStreamReader' in text or isinstance(error, EOFError):
        return f'{path} cannot be read: {DAMAGED}'
    detail = text.split('WeightsUnpickler error:')[-1].strip().split('\n')[0]
    return f'{path} cannot be read ({type(error).__name__}: {detail}): {DAMAGED}, or it is no checkpoint'


def load_from_local_safely(filename: str, map_location: Any = None) -> dict:
    """Serve mmengine's ``CheckpointLoader`` with :func:`load_file`.

    mmengine 0.10 executes ``meta['config']``, Python source in the file, when it resumes; files of its own keep their
    config under ``meta['cfg']``, so the former is taken out.
    """
    checkpoint = load_file(filename, map_location)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    return checkpoint


def load_from_http_safely(filename: str, map_location: Any = None) -> dict:
    """Serve mmengine's ``CheckpointLoader`` for URLs; see :func:`load_from_local_safely`."""
    return load_from_local_safely(filename, map_location)


def allow_mmengine_checkpoints() -> None:
    """Let mmengine read checkpoints (resume, test, ``load_from``, ``Pretrained``) under torch >= 2.6, safely.

    Adds :func:`allowed_globals` to torch's allow-list for the rest of the process, and registers the readers above for
    local files and URLs through mmengine's own ``CheckpointLoader.register_scheme``, so that refusals are clear.
    Calling it again changes nothing.
    """
    torch.serialization.add_safe_globals(allowed_globals())
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local_safely, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http_safely, force=True)
