"""Download files over http and https into the cache that torch and mmengine share.

``torch.hub`` mistakes a dropped connection for the end of the file, and any cached file of the same name for the file
itself. Here a file enters the cache only if it has the announced length, the SHA-256 in its name and readable content.
Files without a SHA-256 in their names are kept apart by their addresses. A download that broke off continues where it
ended, if the server still has the same file.
"""

import fcntl
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, BinaryIO
from urllib.error import HTTPError, URLError
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

from ..utils.errors import UserError

CHUNK = 1 << 18  # bytes
TIMEOUT = 30  # seconds without data
SLOWEST = 1 << 10  # minimum number of bytes in TIMEOUT seconds
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416  # status of HTTP
TRIES = 3  # of a download that breaks off
WEIGHTS_DIR = 'MMCONVNEXTV2_WEIGHTS_DIR'
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
    store it, and is verified at each use. Others are stored in a folder named after their address. The environment
    variable ``MMCONVNEXTV2_WEIGHTS_DIR`` names another folder, in which files have their plain names.

    Args:
        url (str): An ``http://`` or ``https://`` address.
        check (callable, optional): Called with the path of the finished file before it enters the cache; raises
            ``ValueError`` for an incomplete file. Defaults to None.

    Raises:
        ValueError: If the download breaks off three times, stalls for 30 seconds, or does not match its name. The cache
            then has at most a ``.part`` file, from which the next call goes on.
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
    if os.environ.get(WEIGHTS_DIR):
        return os.path.join(os.path.expanduser(os.environ[WEIGHTS_DIR]), name)
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
        with _unfinished(target) as part:
            if part is not None:
                _finish(url, target, part, check)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(
            f'{url} cannot be downloaded: {getattr(error, "reason", error)}. Check the address and the network, or '
            'download the file elsewhere and pass its path: in training, model.backbone.init_cfg.checkpoint=FILE, or '
            'model.init_cfg.checkpoint=FILE where pretraining continues; init_cfg=None starts from random weights; '
            '--weights-dir names a folder of downloads'
        ) from error


@contextmanager
def _unfinished(target: str) -> Iterator[BinaryIO | None]:
    """Yield the ``.part`` file of a download, locked, or None if another process has just finished it.

    The part is removed at the end unless a later download can go on from it.
    """
    part = f'{target}.part'
    with _lock(part, target) as file:
        try:
            yield None if os.path.exists(target) else file
        except UserError:  # its content is of no use
            _remove(f'{part}.version')
            raise
        finally:
            if os.path.exists(target) or not os.path.exists(f'{part}.version'):
                _remove(part, f'{part}.version')


def _lock(part: str, target: str) -> BinaryIO:
    """Open a ``.part`` file when no other process or thread has it; it may be left of an earlier download."""
    while True:
        file = open(part, 'a+b')
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(target) or (
            os.path.exists(part) and os.path.samestat(os.fstat(file.fileno()), os.stat(part))
        ):
            return file
        file.close()  # another one removed it meanwhile


def _remove(*paths: str) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            os.remove(path)


def _finish(url: str, target: str, part: BinaryIO, check: Callable[[str], object] | None) -> None:
    """Download what a ``.part`` file lacks, verify the whole, and rename it."""
    name, announced = os.path.basename(target), _announced_hash(os.path.basename(target))
    print(f'Downloading {url} to {os.path.dirname(target)}', file=sys.stderr)
    for left in reversed(range(TRIES)):
        try:
            digest = _copy(url, part, name)
            break
        except ConnectionError:
            if not left:
                raise
    if announced and not digest.startswith(announced):
        raise UserError(
            f'{url} has SHA-256 {digest[:8]}..., its name announces {announced}: the file was '
            'changed or damaged in transit'
        )
    if check is not None:
        _check(url, part.name, check)
    os.replace(part.name, target)


def _check(url: str, partial: str, check: Callable[[str], object]) -> None:
    try:
        check(partial)
    except ValueError as error:
        raise UserError(f'the download of {url} is not kept: {str(error).replace(partial, "it")}') from error


def _open(url: str, headers: dict[str, str]) -> HTTPResponse:
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
    return opener.open(Request(url, headers={'User-Agent': 'mmconvnextv2', **headers}), timeout=TIMEOUT)


def _hash_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _copy(url: str, file: BinaryIO, name: str) -> str:
    """Append to a file what it lacks of a URL's content, with a progress bar; return the SHA-256 of the whole.

    The version of the content, its ETag or its date, is noted beside the file if the server can continue a download.

    Raises:
        ConnectionError: If fewer bytes arrive than were announced.
        TimeoutError: If fewer than ``SLOWEST`` bytes arrive in ``TIMEOUT`` seconds.
    """
    digest = hashlib.sha256()
    with _ask(url, file, _start(file)) as answer, torch.hub.tqdm(unit='B', unit_scale=True, desc=name) as bar:
        if answer.status != PARTIAL_CONTENT:
            file.truncate(0)
        _note_version(answer, file)
        file.seek(0)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        length = answer.headers.get('Content-Length') or ''
        present = file.tell()
        bar.total = present + int(length) if re.fullmatch(r'\d{1,18}', length) else None
        bar.update(present)
        counted, since = present, time.monotonic()
        while chunk := answer.read1(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
            if time.monotonic() - since > TIMEOUT:
                if file.tell() - counted < SLOWEST:
                    raise TimeoutError(f'{file.tell() - counted} bytes arrived in {TIMEOUT} seconds')
                counted, since = file.tell(), time.monotonic()
        file.flush()
        if file.tell() < (bar.total or 0):
            raise ConnectionError(
                f'the download of {name} broke off after {file.tell()} of {bar.total} bytes: start it again'
            )
    return digest.hexdigest()


def _start(file: BinaryIO) -> int:
    """Return the number of bytes from which a download can go on: those of a part whose version is known."""
    return os.path.getsize(file.name) if os.path.exists(f'{file.name}.version') else 0


def _ask(url: str, file: BinaryIO, start: int) -> HTTPResponse:
    """Request a URL, from a byte on if the server still has the version that a part is of."""
    if not start:
        return _open(url, {})
    with open(f'{file.name}.version', encoding='latin-1') as noted:
        headers = {'Range': f'bytes={start}-', 'If-Range': noted.read()}
    try:
        answer = _open(url, headers)
    except HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise
        return _open(url, {})
    if answer.status == PARTIAL_CONTENT and not (answer.headers.get('Content-Range') or '').startswith(
        f'bytes {start}-'
    ):
        answer.close()
        return _open(url, {})
    return answer


def _note_version(answer: HTTPResponse, file: BinaryIO) -> None:
    """Note the version of a content beside its part, or forget it if downloads of it cannot continue."""
    etag = answer.headers.get('ETag') or ''
    version = etag if etag and not etag.startswith('W/') else answer.headers.get('Last-Modified')
    ranges = answer.status == PARTIAL_CONTENT or answer.headers.get('Accept-Ranges') == 'bytes'
    if version and ranges:
        with open(f'{file.name}.version', 'w', encoding='latin-1') as noted:
            noted.write(version)
    else:
        _remove(f'{file.name}.version')
