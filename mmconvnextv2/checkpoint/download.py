"""Download files over http and https into the cache that torch and mmengine share.

``torch.hub`` mistakes a dropped connection for the end of the file, and any cached file of the same name for the file
itself. Here a file enters the cache only if it has the announced length, the SHA-256 in its name and readable content.
Files without a SHA-256 in their names are kept apart by their addresses.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, BinaryIO
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

import torch
from mmengine.dist import barrier, get_rank, is_distributed

from ..utils.atomic import replacing
from ..utils.errors import UserError

CHUNK = 1 << 18  # bytes
TIMEOUT = 30  # seconds without data
SLOWEST = 1 << 10  # minimum number of bytes in TIMEOUT seconds
HASH_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
DATE = re.compile(r'\d{8}')


class _SafeRedirects(HTTPRedirectHandler):
    """Redirect handler that follows http to http or https, and https only to https."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        allowed = ('https',) if req.type == 'https' else ('http', 'https')
        if urlsplit(newurl).scheme not in allowed:
            raise URLError(f'it redirects to {newurl}, and only {" and ".join(allowed)} are followed')
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, check: Callable[[str], object] | None = None) -> str:
    """Download a file into torch's cache, in one process per machine, and return its path there.

    A file whose name ends in the first digits of its SHA-256 (``...-d484685a.pth``) is stored where torch and mmengine
    store it, and is verified at each use. Others are stored in a folder named after their address.

    Args:
        url (str): An ``http://`` or ``https://`` address.
        check (callable, optional): Called with the path of the finished file before it enters the cache; raises
            ``ValueError`` for an incomplete file. Defaults to None.

    Raises:
        ValueError: If the download breaks off, stalls for 30 seconds, or does not match its name. The cache is then
            unchanged.
    """
    target = cached_path(url)
    try:
        if int(os.environ.get('LOCAL_RANK', get_rank())) == 0:
            _fetch_once(url, target, check)
    finally:
        if is_distributed():
            barrier()
    if not os.path.exists(target):  # this machine has no process of local rank 0
        _fetch_once(url, target, check)
    return target


def cached_path(url: str) -> str:
    """Return the path of a URL's file in the cache, whether or not it exists.

    Raises:
        ValueError: If the URL names no file.
    """
    name = os.path.basename(urlsplit(url).path)
    if not name:
        raise UserError(f'{url} names no file')
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    if _announced_hash(name):
        return os.path.join(folder, name)
    return os.path.join(folder, hashlib.sha256(url.encode()).hexdigest()[:16], name)


def _announced_hash(name: str) -> str | None:
    """Return the first digits of a SHA-256 in a name, as OpenMMLab and torch write it, or None; skip dates."""
    found = HASH_IN_NAME.search(name)
    return None if found is None or DATE.fullmatch(found[1]) else found[1]


def _fetch_once(url: str, target: str, check: Callable[[str], object] | None) -> None:
    """Write a URL's content to ``target`` atomically, complete and verified, unless it exists."""
    announced = _announced_hash(os.path.basename(target))
    if os.path.exists(target):
        if announced is None or _hash_of(target).startswith(announced):
            return
        os.remove(target)  # damaged, or written by another program
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        with replacing(target) as partial:
            with _open(url) as answer, open(partial, 'wb') as file:
                digest = _copy(answer, file, os.path.basename(target))
            if announced and not digest.startswith(announced):
                raise UserError(
                    f'{url} has SHA-256 {digest[:8]}..., its name announces {announced}: the file was '
                    'changed or damaged in transit'
                )
            if check is not None:
                _check(url, partial, check)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(
            f'{url} cannot be downloaded: {getattr(error, "reason", error)}. Check the address and the network, or '
            'download the file elsewhere and pass its path: model.backbone.init_cfg.checkpoint=FILE in training; '
            'model.backbone.init_cfg=None starts from random weights'
        ) from error


def _check(url: str, partial: str, check: Callable[[str], object]) -> None:
    try:
        check(partial)
    except ValueError as error:
        raise UserError(f'the download of {url} is not kept: {str(error).replace(partial, "it")}') from error


def _open(url: str) -> HTTPResponse:
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        HTTPHandler,
        HTTPSHandler,
        HTTPDefaultErrorHandler,
        _SafeRedirects,
        HTTPErrorProcessor,
        UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener.open(Request(url, headers={'User-Agent': 'mmconvnextv2'}), timeout=TIMEOUT)


def _hash_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(answer: HTTPResponse, file: BinaryIO, name: str) -> str:
    """Copy a response with a progress bar; return its SHA-256.

    Raises:
        ValueError: If fewer bytes arrive than were announced.
        TimeoutError: If fewer than ``SLOWEST`` bytes arrive in ``TIMEOUT`` seconds.
    """
    length = answer.headers.get('Content-Length') or ''
    announced = int(length) if re.fullmatch(r'\d{1,18}', length) else 0
    copied, counted, since, digest = 0, 0, time.monotonic(), hashlib.sha256()
    with torch.hub.tqdm(total=announced or None, unit='B', unit_scale=True, desc=name) as bar:
        while chunk := answer.read1(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            copied += len(chunk)
            bar.update(len(chunk))
            if time.monotonic() - since > TIMEOUT:
                if copied - counted < SLOWEST:
                    raise TimeoutError(f'{copied - counted} bytes arrived in {TIMEOUT} seconds')
                counted, since = copied, time.monotonic()
    if copied < announced:
        raise UserError(f'the download of {name} broke off after {copied} of {announced} bytes: start it again')
    return digest.hexdigest()
