"""Read checkpoint files without running code from them.

torch >= 2.6 unpickles with an allow-list that lacks what mmengine's files (HistoryBuffer, numpy arrays) and the
official code's (argparse.Namespace) need, and that admits more than honest files need. Here pickles are read by
:mod:`~mmconvnextv2.checkpoint.unpickling`, which never calls what a file names.
"""

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.fileio import get_local_path
from mmengine.runner import CheckpointLoader

from ..utils.errors import MissingFileError, UserError
from ..utils.public_models import get_model, is_name
from .download import download
from .unpickling import NotAllowed, Refused, read_pickled

SAFETENSORS_MAX_HEADER = 100_000_000
PARTS: dict[str, tuple[type, ...]] = dict(
    meta=(dict,), state_dict=(dict,), message_hub=(dict,), optimizer=(dict,), param_schedulers=(list, dict)
)
DAMAGED = 'it is truncated or damaged: copy or download it again'


def load_file(path: str, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint from a local path, a URL or another of mmengine's file backends.

    Args:
        path (str): A ``.pth``, ``.pt`` or ``.safetensors`` file; the kind is detected from the content. The name of a
            public model, such as ``'convnextv2-base_fcmae'``, is an address of the metafiles. ``http(s)://``
            goes through torch's download cache with a progress bar. A name that ends in the first digits of its
            SHA-256, ``...-d484685a.pth``, is verified. Other prefixes go through ``mmengine.fileio``.
        map_location: As in ``torch.load``. Defaults to 'cpu'.

    Returns:
        dict: Content of the file; for safetensors a flat state dict.

    Raises:
        FileNotFoundError: If a local file does not exist.
        ValueError: If the file is empty, truncated, damaged, compressed, of another byte order or of another kind, if
            it announces more than it holds, or if its pickle uses a global that is not allowed. No code from the file
            has run in any of these cases.
    """
    with _local_copy(str(path)) as local:
        kind = _file_kind(local)
        if kind == 'safetensors':
            return _read_safetensors(local, map_location)
        if kind == 'zip':
            _check_archive(local)
        content = _read_pickle(str(path), local, map_location)
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__}: a checkpoint is a dict of weights')
    _check_layout(path, content)
    return content


def _check_layout(path: str, content: dict) -> None:
    """Refuse parts whose type differs from what every writer uses; code that reads them later does not check.

    Raises:
        ValueError: Naming the part.
    """
    hub = content.get('message_hub')
    parts: dict[str, tuple[Any, tuple[type, ...]]] = {name: (content.get(name), kinds) for name, kinds in PARTS.items()}
    if isinstance(hub, dict):
        parts |= {f'message_hub.{name}': (hub.get(name), (dict,)) for name in ('log_scalars', 'runtime_info')}
    if isinstance(content.get('meta'), dict):
        parts |= {f'meta.{name}': (content['meta'].get(name), (int,)) for name in ('epoch', 'iter')}
        parts['meta.dataset_meta'] = content['meta'].get('dataset_meta'), (dict,)
    if isinstance(content.get('optimizer'), dict):
        parts['optimizer.state'] = content['optimizer'].get('state'), (dict,)
        parts['optimizer.param_groups'] = content['optimizer'].get('param_groups'), (list,)
    for name, (value, kinds) in parts.items():
        if value is not None and not isinstance(value, kinds):
            raise UserError(
                f'{path} holds {name} as {type(value).__name__}, expected {kinds[0].__name__}: it was '
                'changed after it was written, or is not a training checkpoint'
            )


@contextmanager
def _local_copy(path: str) -> Iterator[str]:
    if path.startswith(('http://', 'https://')):
        yield download(path, load_file)
    elif '://' in path:
        with get_local_path(path) as local:
            yield str(local)
    elif is_name(path) and not os.path.exists(path):
        yield download(get_model(path).weights, load_file)
    else:
        yield os.path.expanduser(path)


def _file_kind(path: str) -> str:
    """Return 'zip' (torch >= 1.6), 'pickle' (older torch) or 'safetensors', judging by the first bytes."""
    if not os.path.isfile(path):
        raise MissingFileError(f'checkpoint {path!r} is not a file: check the path')
    size = os.path.getsize(path)
    if size == 0:
        raise UserError(f'{path} is empty (0 bytes): {DAMAGED}')
    with open(path, 'rb') as file:
        head = file.read(64)
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    fits = head[8:9] == b'{' and 8 + int.from_bytes(head[:8], 'little') <= size
    if head.startswith(b'\x80') and not fits:  # a safetensors header of 128, 384, .. bytes starts with the same byte
        return 'pickle'
    if head[8:9] == b'{':
        _check_safetensors_header(path, head, size)
        return 'safetensors'
    raise UserError(
        f'{path} is not a checkpoint: {_describe_foreign(head)}; expected a file written by torch.save '
        'or a .safetensors file'
    )


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
        raise UserError(
            f'{path} has its header length in big-endian order: write it again as little-endian, as the '
            'safetensors format requires'
        )
    raise UserError(f'{path} announces a header of {length} bytes but has {size}: {DAMAGED}')


def _read_safetensors(path: str, map_location: Any) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors
    except ImportError as error:
        raise UserError(f'{path} is a safetensors file: install the package safetensors to read it') from error
    try:
        return load_safetensors(path, device=str(map_location or 'cpu'))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f'{path} cannot be read ({error}): {DAMAGED}') from error


def _check_archive(path: str) -> None:
    """Refuse an archive that torch.save never writes: compressed or overlapping entries (a zip bomb), no data.pkl, or
    another machine's byte order."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            orders = [
                archive.read(entry)
                for entry in entries
                if entry.filename.endswith('/byteorder') and entry.file_size < 16
            ]
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f'{path} cannot be read as an archive ({error}): {DAMAGED}') from error
    total = sum(entry.file_size for entry in entries)
    if total > os.path.getsize(path) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(
            f'{path} has {os.path.getsize(path)} bytes and unpacks to {total}: torch.save does not '
            'compress, so this is refused as a possible zip bomb'
        )
    if not any(entry.filename.endswith('/data.pkl') for entry in entries):
        raise UserError(f'{path} is a zip archive without data.pkl: it was not written by torch.save')
    if any(order.decode('ascii', 'replace') != sys.byteorder for order in orders):
        raise UserError(
            f'{path} is in byte order {orders[0]!r} and this machine is {sys.byteorder}-endian: save it '
            'as safetensors on a machine with that byte order'
        )


def _read_pickle(path: str, local: str, map_location: Any) -> Any:
    try:
        return read_pickled(local, map_location)
    except NotAllowed as error:
        raise UserError(
            f'{path} asks to run {str(error)!r}, which no checkpoint needs: refused, and none of it has '
            'run. Get the weights as .safetensors, or from a source that you trust'
        ) from error
    except Refused as error:
        raise UserError(
            f'{path} is refused: {error}. No honest checkpoint has this: the file is damaged, or crafted '
            'like a zip bomb. Get it again, as .safetensors if available'
        ) from error
    except (MemoryError, RecursionError, OSError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}: {error}): {DAMAGED}, or it is not a checkpoint'
        ) from error


def load_from_local_safely(filename: str, map_location: Any = None) -> dict:
    """Read a file for mmengine's ``CheckpointLoader`` with :func:`load_file`.

    When it resumes, mmengine 0.10 executes ``meta['config']``, Python source in the file. Its own files keep their
    config under ``meta['cfg']``, so ``meta['config']`` is removed.
    """
    checkpoint = load_file(filename, map_location)
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    return checkpoint


def load_from_http_safely(filename: str, map_location: Any = None) -> dict:
    """Read a URL for mmengine's ``CheckpointLoader``; see :func:`load_from_local_safely`."""
    return load_from_local_safely(filename, map_location)


def allow_mmengine_checkpoints() -> None:
    """Let mmengine read checkpoints (resume, test, ``load_from``, ``Pretrained``) safely under torch >= 2.6.

    The readers above are registered for local files and URLs with mmengine's ``CheckpointLoader.register_scheme``.
    torch's allow-list is unchanged. A second call has no effect.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local_safely, force=True)
    CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), loader=load_from_http_safely, force=True)
