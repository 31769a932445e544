"""URLs enter the cache whole and verified, or not at all; mmengine's other backends are read through its fileio."""

import functools
import hashlib
import io
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
import torch
from mmengine.fileio import LocalBackend, register_backend
from safetensors.torch import save
from small_models import NARROW

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import download, load_backbone
from mmconvnextv2.checkpoint.load import load_file

WEIGHTS = dict(weight=torch.arange(12.0).reshape(3, 4))
CONTENT = save(WEIGHTS)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, notes what was asked for, and breaks off in the middle of files named ``broken``."""

    def __init__(self, *args, asked=None, **kwargs):
        self.asked = asked
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked.append(self.path)
        if 'broken' not in self.path:
            return super().do_GET()
        content = Path(self.directory, self.path[1:]).read_bytes()
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    """Serve a folder on this machine; yields the address and the list of paths asked for."""
    asked = []
    handler = functools.partial(Handler, directory=str(folder), asked=asked)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to serve, and an empty download cache."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (tmp_path / 'served').mkdir()
    return tmp_path / 'served'


def cached():
    cache = Path(torch.hub.get_dir(), 'checkpoints')
    return sorted(path.name for path in cache.rglob('*') if path.is_file())


def test_a_url_is_fetched_once(folder, capfd):
    """A URL is read once, under a progress bar; the second time the cache serves, with the server gone."""
    (folder / 'weights.safetensors').write_bytes(CONTENT)
    with serving(folder) as (address, asked):
        for _ in range(2):
            assert torch.equal(load_file(f'{address}/weights.safetensors?download=true')['weight'], WEIGHTS['weight'])
    assert torch.equal(load_file(f'{address}/weights.safetensors?download=true')['weight'], WEIGHTS['weight'])
    assert asked == ['/weights.safetensors?download=true'] and cached() == ['weights.safetensors']
    assert '100%' in capfd.readouterr().err


def test_a_backbone_starts_from_a_url(folder):
    """A backbone loads from a URL bit for bit, and a second time without the server."""
    source, buffer = ConvNeXtV2(NARROW), io.BytesIO()
    torch.save(source.state_dict(), buffer)
    (folder / 'backbone.pth').write_bytes(buffer.getvalue())
    with serving(folder) as (address, _):
        load_backbone(ConvNeXtV2(NARROW), f'{address}/backbone.pth')
    target = ConvNeXtV2(NARROW)
    load_backbone(target, f'{address}/backbone.pth')
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_a_broken_download_leaves_nothing(folder):
    """A connection that ends early raises and leaves no file in the cache, whole or partial; so does a missing file,
    and a name whose SHA-256 is another."""
    (folder / 'broken.safetensors').write_bytes(CONTENT)
    (folder / 'changed-0123abcd.safetensors').write_bytes(CONTENT)
    with serving(folder) as (address, _):
        for name, message in (
            ('broken.safetensors', f'broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes'),
            ('missing.pth', 'cannot be downloaded: File not found'),
            ('changed-0123abcd.safetensors', 'its name announces 0123abcd'),
            ('', 'names no file'),
        ):
            with pytest.raises(ValueError, match=message):
                load_file(f'{address}/{name}')
            assert cached() == []
        (folder / 'broken.safetensors').rename(folder / 'whole.safetensors')
        assert torch.equal(load_file(f'{address}/whole.safetensors')['weight'], WEIGHTS['weight'])
    with pytest.raises(ValueError, match='cannot be downloaded: .*refused'):
        load_file(f'{address}/again.safetensors')


@pytest.mark.parametrize('name', ['epoch_20230104-{}.pth', 'epoch-{:.16}.safetensors', 'epoch-20230104.pth'])
def test_names_with_a_digest_are_verified(folder, name):
    """The beginning of the right SHA-256, of any length, is accepted; eight digits may be a date and say nothing."""
    name = name.format(hashlib.sha256(CONTENT).hexdigest())
    (folder / name).write_bytes(CONTENT)
    with serving(folder) as (address, _):
        assert torch.equal(load_file(f'{address}/{name}')['weight'], WEIGHTS['weight'])


class Odd(SimpleHTTPRequestHandler):
    """Answers each path of :data:`ANSWERS` with its headers, then its pieces, each after a pause."""

    def do_GET(self):
        status, headers, pieces = ANSWERS[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for pause, piece in pieces:
                time.sleep(pause)
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:  # who asked has gone
            pass

    def log_message(self, *args):
        pass


def torch_file():
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    return buffer.getvalue()


ANSWERS = {
    '/silent.safetensors': (200, {}, [(30, CONTENT)]),
    '/dripping.safetensors': (200, {'Content-Length': len(CONTENT)}, [(0.4, bytes([byte])) for byte in CONTENT]),
    '/slow.safetensors': (200, {'Content-Length': len(CONTENT)}, [(0.3, CONTENT[:50]), (0.3, CONTENT[50:])]),
    '/cut.safetensors': (200, {}, [(0, CONTENT[:-1])]),
    '/cut.pth': (200, {}, [(0, torch_file()[:-30])]),
    '/short.pth': (200, {'Content-Length': 900}, [(0, torch_file())]),
    '/page.pth': (200, {}, [(0, b'<!DOCTYPE html><html>Log in first</html>')]),
    '/abc.safetensors': (200, {'Content-Length': 'abc'}, [(0, CONTENT)]),
    '/to-ftp.pth': (302, {'Location': 'ftp://127.0.0.1/weights.pth'}, []),
    '/to-file.pth': (302, {'Location': 'file:///etc/passwd'}, []),
    '/moved.safetensors': (302, {'Location': '/slow.safetensors'}, []),
}


@pytest.mark.parametrize(
    'name, message',
    [
        ('silent.safetensors', 'cannot be downloaded: .*timed out'),
        ('dripping.safetensors', r'cannot be downloaded: \d bytes arrived in'),
        ('cut.safetensors', 'is not kept: it cannot be read .* truncated'),
        ('cut.pth', 'is not kept: it cannot be read as an archive .* truncated'),
        ('short.pth', 'is not kept: it cannot be read as an archive .* truncated'),
        ('page.pth', 'is not kept: it is not a checkpoint: it is a web page'),
        ('to-ftp.pth', 'it redirects to ftp://127.0.0.1/weights.pth, and only http and https are followed'),
        ('to-file.pth', "'file:///etc/passwd' is not allowed"),
        ('slow.safetensors', None),
        ('moved.safetensors', None),
        ('abc.safetensors', None),
    ],
)
def test_odd_servers(folder, monkeypatch, name, message):
    """A server that is silent, drips, cuts, lies about the length, answers with a page or leads to another protocol
    leaves nothing in the cache and one line; a slow one and one without a usable length are read."""
    monkeypatch.setattr(download, 'TIMEOUT', 1)
    monkeypatch.setattr(download, 'SLOWEST', 100)
    with ThreadingHTTPServer(('127.0.0.1', 0), Odd) as server:
        server.daemon_threads, server.block_on_close = True, False
        Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/{name}'
        if message is None:
            assert torch.equal(load_file(url)['weight'], WEIGHTS['weight'])
        else:
            with pytest.raises(ValueError, match=message) as caught:
                load_file(url)
            assert url in str(caught.value) and '.partial' not in str(caught.value) and cached() == []
        server.shutdown()


def test_files_of_one_name_are_kept_apart(folder):
    """Two addresses that end in the same name give two files, as every model of Hugging Face's hub does."""
    for place, value in (('a', 1.0), ('b', 2.0)):
        (folder / place).mkdir()
        (folder / place / 'model.safetensors').write_bytes(save(dict(weight=torch.tensor([value]))))
    with serving(folder) as (address, _):
        for _ in range(2):
            found = [load_file(f'{address}/{place}/model.safetensors')['weight'].item() for place in 'ab']
            assert found == [1, 2]


def test_a_cached_file_is_verified(folder):
    """A file in the cache whose SHA-256 is not the one in its name is fetched again."""
    name = f'epoch-{hashlib.sha256(CONTENT).hexdigest()[:8]}.safetensors'
    (folder / name).write_bytes(CONTENT)
    with serving(folder) as (address, asked):
        load_file(f'{address}/{name}')
        Path(download.cached_path(f'{address}/{name}')).write_bytes(save(dict(weight=torch.zeros(1))))
        assert torch.equal(load_file(f'{address}/{name}')['weight'], WEIGHTS['weight'])
        load_file(f'{address}/{name}')
    assert len(asked) == 2


def test_many_at_once(folder):
    """Eight threads that request one file get it whole, and leave one file."""
    (folder / 'weights.safetensors').write_bytes(CONTENT)
    with serving(folder) as (address, _), ThreadPoolExecutor(8) as pool:
        found = list(pool.map(load_file, [f'{address}/weights.safetensors'] * 8))
    assert all(torch.equal(one['weight'], WEIGHTS['weight']) for one in found) and cached() == ['weights.safetensors']


PROCESS = """
import os, sys, torch
torch.hub.set_dir(sys.argv[1])
torch.distributed.init_process_group('gloo')
from mmconvnextv2.checkpoint.load import load_file
for name in ('broken.safetensors', 'weights.safetensors'):
    try:
        print(os.environ['RANK'], load_file(f'{sys.argv[2]}/{name}')['weight'].sum().item())
    except ValueError as error:
        print(os.environ['RANK'], 'broke off' in str(error))
torch.distributed.destroy_process_group()
"""


def test_processes_of_a_machine_download_once(folder):
    """Of two processes one downloads and both read; when it fails both say so, and neither waits for the other."""
    for name in ('broken.safetensors', 'weights.safetensors'):
        (folder / name).write_bytes(CONTENT)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    with serving(folder) as (address, asked):
        processes = [
            subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c', PROCESS, torch.hub.get_dir(), address],
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    'RANK': rank,
                    'LOCAL_RANK': rank,
                    'WORLD_SIZE': '2',
                    'MASTER_PORT': port,
                    'MASTER_ADDR': '127.0.0.1',
                },
            )
            for rank in '01'
        ]
        printed = [process.communicate(timeout=120)[0].split('\n')[:2] for process in processes]
    assert printed == [['0 True', '0 66.0'], ['1 True', '1 66.0']]
    assert asked.count('/weights.safetensors') == 1 and cached() == ['weights.safetensors']


class Ranges(SimpleHTTPRequestHandler):
    """Serves :attr:`content` with an ETag and by ranges, breaking off after :attr:`most` bytes of each answer."""

    content, version, most, asked = CONTENT, '"one"', 10**9, None

    def do_GET(self):
        wanted, condition = self.headers.get('Range'), self.headers.get('If-Range')
        self.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and condition == self.version else 0
        if start >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header('ETag', self.version)
        self.send_header('Accept-Ranges', 'bytes')
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(self.content) - 1}/{len(self.content)}')
        self.send_header('Content-Length', str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])
        if self.most < len(self.content):
            time.sleep(self.pause)

    def log_message(self, *args):
        pass


@contextmanager
def ranges(**settings):
    """Serve by ranges; yields the address and the handler, whose settings can be changed."""
    handler = type('Handler', (Ranges,), dict(asked=[], pause=0, **settings))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/weights.safetensors', handler
        server.shutdown()


def test_a_broken_download_goes_on(folder):
    """A download that breaks off goes on from the byte where it ended, at once and in a later call, and gives the whole
    file; after three tries it is given up, and what has come is kept."""
    with ranges(most=30) as (url, handler):
        with pytest.raises(ValueError, match=f'broke off after 90 of {len(CONTENT)} bytes'):
            load_file(url)
        assert handler.asked == [None, 'bytes=30-', 'bytes=60-']
        assert cached() == ['weights.safetensors.part', 'weights.safetensors.part.version']
        handler.most = 10**9
        assert torch.equal(load_file(url)['weight'], WEIGHTS['weight'])
        assert handler.asked[3:] == ['bytes=90-'] and cached() == ['weights.safetensors']


@pytest.mark.parametrize('change', ['another version', 'a part that is too long'])
def test_a_changed_file_starts_over(folder, change):
    """Where the server's file has changed since a part came, or the part cannot be of it, the download starts over."""
    with ranges(most=30) as (url, handler):
        with pytest.raises(ValueError, match='broke off'):
            load_file(url)
        handler.most, handler.asked = 10**9, []
        if change == 'another version':
            handler.version, handler.content = '"two"', save(dict(weight=torch.ones(5)))
        else:
            part = Path(f'{download.cached_path(url)}.part')
            part.write_bytes(b'0' * 10**4)
        found = load_file(url)['weight']
        assert torch.equal(found, torch.ones(5) if change == 'another version' else WEIGHTS['weight'])
        assert cached() == ['weights.safetensors']


def test_a_killed_download_goes_on(folder):
    """After SIGKILL in the middle of a download, another process goes on from the part."""
    with ranges(most=100) as (url, handler):
        handler.pause = 60
        code = (
            f'import torch; torch.hub.set_dir({torch.hub.get_dir()!r})\n'
            f'from mmconvnextv2.checkpoint.load import load_file; load_file({url!r})'
        )
        process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stderr=subprocess.DEVNULL)
        part = Path(f'{download.cached_path(url)}.part')
        for _ in range(600):
            if part.exists() and part.stat().st_size:
                break
            time.sleep(0.1)
        process.kill()
        process.wait()
        handler.most = 10**9
        assert torch.equal(load_file(url)['weight'], WEIGHTS['weight'])
        assert handler.asked == [None, 'bytes=100-']


def test_a_folder_of_weights(folder, tmp_path, monkeypatch):
    """With MMCONVNEXTV2_WEIGHTS_DIR a file in that folder is read without a network, and one that is missing is
    downloaded into it under its plain name."""
    weights = tmp_path / 'weights'
    weights.mkdir()
    monkeypatch.setenv('MMCONVNEXTV2_WEIGHTS_DIR', str(weights))
    (weights / 'there.safetensors').write_bytes(CONTENT)
    assert torch.equal(load_file('http://127.0.0.1:9/a/there.safetensors')['weight'], WEIGHTS['weight'])
    (folder / 'fetched.safetensors').write_bytes(CONTENT)
    with serving(folder) as (address, _):
        load_file(f'{address}/fetched.safetensors')
    assert sorted(path.name for path in weights.iterdir()) == ['fetched.safetensors', 'there.safetensors']
    with pytest.raises(ValueError, match='--weights-dir'):
        load_file('http://127.0.0.1:9/a/absent.safetensors')


@register_backend('shelf', prefixes='shelf', force=True)
class ShelfBackend(LocalBackend):
    """An mmengine backend whose files come and go: ``shelf://NAME`` is a copy for as long as it is used."""

    files = {}

    @contextmanager
    def get_local_path(self, filepath):
        with TemporaryDirectory() as folder:
            path = Path(folder, 'copy')
            path.write_bytes(self.files[str(filepath).partition('://')[2]])
            yield str(path)


def test_other_backends_go_through_mmengine():
    """A prefix that mmengine's fileio knows is read through it."""
    ShelfBackend.files['weights.pth'] = CONTENT
    assert torch.equal(load_file('shelf://weights.pth')['weight'], WEIGHTS['weight'])
