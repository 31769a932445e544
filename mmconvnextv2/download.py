"""Files behind http and https, into the download cache that torch and mmengine share.

``torch.hub`` takes a connection that breaks off for the end of the file and keeps what came; here a file enters the
cache whole, with the length that was announced and the SHA-256 that its name begins, or not at all.
"""
import hashlib
import os
import re
from http.client import HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

import torch
from mmengine.dist import barrier, get_rank, is_distributed

CHUNK = 1 << 18  # bytes
HASH_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
DATE = re.compile(r'\d{8}')


def download(url: str) -> str:
    """Fetch into torch's download cache, as mmengine does, on one process a machine; return the path there.

    Raises:
        ValueError: If the download breaks off, or is not what its name announces; the cache is then as it was.
    """
    name = os.path.basename(urlsplit(url).path)
    if not name:
        raise ValueError(f'{url} names no file')
    target = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    try:
        if int(os.environ.get('LOCAL_RANK', get_rank())) == 0:
            _fetch_once(url, target)
    finally:
        if is_distributed():
            barrier()
    _fetch_once(url, target)  # a process whose machine has no rank 0 of its own
    return target


def _fetch_once(url: str, target: str) -> None:
    """Write a URL's content to ``target`` unless it is there: complete, verified, and in one move."""
    if os.path.exists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    partial = f'{target}.{uuid4().hex}.partial'
    try:
        with urlopen(Request(url, headers={'User-Agent': 'mmconvnextv2'})) as answer, open(partial, 'wb') as file:
            digest = _copy(answer, file, os.path.basename(target))
        _check_name(url, digest)
        os.replace(partial, target)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ValueError(f'{url} cannot be downloaded: {getattr(error, "reason", error)}. Check the address and the '
                         'network, or give a local file') from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _copy(answer: HTTPResponse, file: BinaryIO, name: str) -> str:
    """Copy an answer under a progress bar; return its SHA-256.

    Raises:
        ValueError: If fewer bytes come than were announced.
    """
    announced, copied, digest = int(answer.headers.get('Content-Length') or 0), 0, hashlib.sha256()
    with torch.hub.tqdm(total=announced or None, unit='B', unit_scale=True, desc=name) as bar:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            copied += len(chunk)
            bar.update(len(chunk))
    if copied < announced:
        raise ValueError(f'the download of {name} broke off after {copied} of {announced} bytes: start it again')
    return digest.hexdigest()


def _check_name(url: str, digest: str) -> None:
    """Compare a file with the beginning of its SHA-256 in its name, as OpenMMLab and torch give it.

    Eight digits alone may be a date.
    """
    named = HASH_IN_NAME.search(urlsplit(url).path)
    if named and not DATE.fullmatch(named[1]) and not digest.startswith(named[1]):
        raise ValueError(f'{url} has SHA-256 {digest[:8]}..., its name announces {named[1]}: the file was changed or '
                         'damaged on its way')
