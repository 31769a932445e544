"""A run owns the files that it named in its own folder, whatever a checkpoint says; one run per folder."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from real_runs import last, make_config, start, train, wait_for, write_images

from mmconvnextv2.engine.folder_lock import NAME, lock_folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data') / 'images')


def forge(folder, **runtime_info):
    """Put entries into the message hub of a run's last checkpoint."""
    path = (folder / 'last_checkpoint').read_text()
    content = torch.load(path, weights_only=False)
    content['message_hub']['runtime_info'].update(runtime_info)
    torch.save(content, path)


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file() or path.is_symlink()}


def test_names_in_a_checkpoint_remove_nothing_of_others(images, tmp_path):
    """Paths to other folders, through the parent, through a link and with names of no checkpoint stay; the files that
    the run itself outdated go."""
    run, precious = tmp_path / 'work' / 'run', tmp_path / 'precious'
    train(make_config(images, run, epochs=2))
    for place in (precious, run / 'epoch_7', tmp_path / 'work'):
        place.mkdir(exist_ok=True)
        (place / 'iter_1.pth').write_text('kept')
        (place / 'notes.txt').write_text('kept')
    (run / 'notes.pth').write_text('kept')
    os.symlink(precious, run / 'link')
    os.symlink(precious, run / 'iter_9.pth')
    (run / 'iter_3.pth').write_text('outdated by a killed run')
    before = tree(tmp_path) - {'work/run/iter_3.pth'}
    forge(
        run,
        outdated_checkpoints=[
            str(run / '..'),
            f'{run}/X/..',
            str(run),
            '/',
            str(precious),
            str(precious / 'iter_1.pth'),
            f'{run}/link/iter_1.pth',
            str(run / 'notes.pth'),
            str(run / 'epoch_7'),
            f'{run}/../iter_1.pth',
            str(run / 'iter_9.pth' / 'iter_1.pth'),
            7,
            None,
            str(run / 'iter_3.pth'),
        ],
        keep_ckpt_ids=['../iter_1', '1/../../notes', -1, 2.5, None, '*', 5, 6],
        best_ckpt=str(precious / 'iter_1.pth'),
    )
    cfg = make_config(images, run, epochs=2)
    train(cfg, True)
    assert before <= tree(tmp_path) and not (run / 'iter_3.pth').exists()
    assert all((place / 'iter_1.pth').read_text() == 'kept' for place in (precious, tmp_path / 'work'))


def test_going_on_elsewhere_leaves_the_first_folder_whole(images, tmp_path):
    """Resuming a checkpoint of A in folder B removes neither A's files nor files of B that have names of A's."""
    first, second = tmp_path / 'a', tmp_path / 'b'
    train(make_config(images, first, epochs=2))
    (first / 'best_score_iter_4.pth').write_text('the best')
    forge(first, best_ckpt=str(first / 'best_score_iter_4.pth'), best_score=0.0)
    second.mkdir()
    (second / 'iter_5.pth').write_text('of another run')
    before = tree(first)
    cfg = make_config(images, second, **{'load_from': (first / 'last_checkpoint').read_text()})
    train(cfg, True)
    assert last(second)['meta']['iter'] == 12 and tree(first) == before
    assert (second / 'iter_5.pth').read_text() == 'of another run'


def test_moved_folder_stays_its_own(images, tmp_path):
    """After a work folder was moved, its run goes on with its own list: no more files than it should keep."""
    train(make_config(images, tmp_path / 'a', epochs=2))
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    name = os.path.basename((tmp_path / 'b' / 'last_checkpoint').read_text())
    train(make_config(images, tmp_path / 'b', load_from=str(tmp_path / 'b' / name)), True)
    assert {path.name for path in (tmp_path / 'b').glob('*.pth')} == {'iter_11.pth', 'iter_12.pth'}


def test_second_run_in_a_folder_is_refused(images, tmp_path):
    """While a run trains, a second one in its folder ends with one line that names it; killed, it leaves the folder to
    the next."""
    process = start(train, make_config(images, tmp_path, dawdle=dict(seconds=0.2)), log=tmp_path / 'log')
    wait_for((tmp_path / NAME).exists, process)
    wait_for(lambda: any(tmp_path.glob('iter_1.pth')), process)
    with pytest.raises(SystemExit, match=f'is in use by process {process.pid} on .* since 20'):
        train(make_config(images, tmp_path))
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    train(make_config(images, tmp_path), True)
    assert last(tmp_path)['meta']['iter'] == 12


def test_lock_through_a_link_and_over_odd_content(tmp_path):
    """A folder is the same folder through a link, a lock file with any content is not an obstacle, and one that links
    elsewhere is not followed."""
    folder, other = tmp_path / 'a', tmp_path / 'b'
    folder.mkdir()
    (folder / NAME).write_bytes(b'\xff not json')
    lock_folder(str(folder))
    os.symlink(folder, other)
    code = 'import sys; from mmconvnextv2.engine.folder_lock import lock_folder; lock_folder(sys.argv[1])'
    run = subprocess.run([sys.executable, '-c', code, str(other)], capture_output=True, text=True)
    assert f'in use by process {os.getpid()}' in run.stderr
    target = tmp_path / 'target'
    target.write_text('kept')
    (tmp_path / 'c').mkdir()
    os.symlink(target, tmp_path / 'c' / NAME)
    with pytest.raises(OSError):
        lock_folder(str(tmp_path / 'c'))
    assert target.read_text() == 'kept'
