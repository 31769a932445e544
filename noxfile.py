"""Tests in environments other than the locked one: ``nox -l`` lists the sessions, ``nox -s wheel`` runs one.

Sessions on CPython 3.11 link to the packages that ``make env`` installed, so that torch is not downloaded and mmcv not
built again; VENV gives their environment, as for make. The packages under test are installed in a separate environment.
"""

import os
import shutil
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
VENV = Path(os.environ.get('VENV', ROOT / '.venv'))
OURS = ('mmconvnextv2', '__editable__')
UPSTREAM = ('mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg')
FORKS = (
    'onedl-mmdetection==3.5.1',
    'onedl-mmsegmentation==1.4.2',
    'onedl-mmpretrain==1.3.6',
    'imaug',
    'imageio',
    'lazy-loader',
    'scikit-image',
    'tifffile',
)  # with the other dependencies of the fork's mmdet
# Repositories whose weights start our backbones, at the commits that were compared
UPSTREAM_CODE = dict(
    dinov3=('facebookresearch/dinov3', '6876159a11b4df116f30f667f8c9888617df0751'),
    eupe=('facebookresearch/EUPE', 'f6cdf04d82b97009941a27e9bed3ca17ac7e0366'),
    mmearth=('vishalned/MMEarth-train', '1f368b313a19b9f940578645643553f9dfdbde70'),
    open_clip=('mlfoundations/open_clip', '89fb801f1e6087880e951fc8354b8a2077b79c6d'),
    spark=('keyu-tian/SparK', 'a63e386f8e5186bc07ad7fce86e06b08f48a61ea'),
)
# Tests of the backbone, its executions, weights and pretraining that need neither mmdet, mmseg nor mmcv.ops
BARE = [
    'tests/test_backbone.py',
    'tests/test_layer_decay.py',
    'tests/test_response_norms.py',
    'tests/test_execution',
    'tests/test_checkpoint',
    'tests/test_pretrain',
    '--ignore=tests/test_checkpoint/test_frameworks.py',
]
# These, and tests that build every recipe; the remaining tests cover set-up, packaging and tools
PORTABLE = [
    'tests/test_mmcv_operators',
    'tests/test_versions.py',
    'tests/test_recipes/test_every_leaf.py',
    *BARE[:-1],
]

nox.options.sessions = ['wheel', 'mim', 'upstream']
nox.options.error_on_missing_interpreters = True


def borrow(session: nox.Session, without: tuple = ()) -> None:
    """Link the packages that ``make env`` installed into the session, except names that start with ``without``."""
    site, links = VENV / 'lib' / 'python3.11' / 'site-packages', Path(session.create_tmp()).resolve() / 'borrowed'
    if not (VENV / '.lock').exists():
        session.error(f'{VENV} is missing or incomplete: run make env')
    links.mkdir(exist_ok=True)
    for old in links.iterdir():
        old.unlink()
    for path in site.iterdir():
        if path.suffix != '.pth' and not path.name.lower().startswith((*OURS, 'pip', *without)):
            (links / path.name).symlink_to(path)
    own = Path(session.virtualenv.location) / 'lib' / 'python3.11' / 'site-packages'
    (own / 'borrowed.pth').write_text(f'{links}\n')  # searched after the session's own packages


def install_wheel(session: nox.Session, *options: str, extras: str = '') -> None:
    """Build the wheel and install it."""
    shutil.rmtree(ROOT / 'build', ignore_errors=True)  # pip builds in place and would include stale files
    dist = Path(session.create_tmp()).resolve() / 'dist'
    shutil.rmtree(dist, ignore_errors=True)
    session.run('python', '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', str(dist), str(ROOT))
    (wheel,) = dist.glob('*.whl')
    session.install(*options, f'{wheel}{extras}')


def run_story(session: nox.Session, *options: str) -> None:
    """Run tests/wheel_story.py in an empty folder outside the clone."""
    with tempfile.TemporaryDirectory() as folder:
        session.run('python', str(ROOT / 'tests' / 'wheel_story.py'), folder, *options)


@nox.session(python='3.11')
def wheel(session: nox.Session) -> None:
    """Test the wheel: inherit a config from it, train, test, predict, convert."""
    borrow(session)
    install_wheel(session, '--no-deps', '--force-reinstall')
    run_story(session, *session.posargs)


@nox.session(python='3.11')
def mim(session: nox.Session) -> None:
    """Test the wheel through mim, in a separate environment, since mim pins an old setuptools, requests and rich."""
    session.install('openmim==0.3.9')
    borrow(session, ('setuptools', '_distutils_hack', 'requests', 'rich', 'tqdm'))
    install_wheel(session, '--no-deps', '--force-reinstall')
    run_story(session, '--mim', *session.posargs)


@nox.session(python='3.11')
def upstream(session: nox.Session) -> None:
    """Run the tests on the locked packages, with the code of the clone."""
    borrow(session)
    session.env['PYTHONPATH'] = str(ROOT)
    session.run('python', '-m', 'pytest', *(session.posargs or ['-n', '2', '--dist', 'loadfile']))


@nox.session(python='3.11')
def leaves(session: nox.Session) -> None:
    """Train and evaluate every detection and segmentation recipe, made small, on generated data sets."""
    borrow(session)
    session.env.update(PYTHONPATH=str(ROOT), MMCONVNEXTV2_EVERY_LEAF='1')
    files = ('tests/train_every_leaf.py', 'tests/test_recipes/test_data_sets.py')
    session.run('python', '-m', 'pytest', *files, *(session.posargs or ['-n', '2']))


@nox.session(python='3.11')
def exports(session: nox.Session) -> None:
    """Export a narrow model of every kind that is exported whole, and compare predictions."""
    borrow(session)
    session.env.update(PYTHONPATH=str(ROOT), MMCONVNEXTV2_EXPORTS='1')
    session.run('python', '-m', 'pytest', *(session.posargs or ['tests/test_export.py', 'tests/test_export_whole.py']))


@nox.session(python='3.11')
def forks(session: nox.Session) -> None:
    """Run the portable tests on the OneDL forks, with torchvision's operators, so that nothing is compiled."""
    borrow(session, UPSTREAM)
    session.install('--no-deps', '--no-build-isolation', 'onedl-mmengine==0.10.12')
    session.install('--no-deps', 'onedl-mmcv==2.3.6')  # compiles nothing, since its build cannot import torch
    session.install('--no-deps', '--no-build-isolation', *FORKS)
    session.env['PYTHONPATH'] = str(ROOT)
    session.run('python', '-m', 'mmconvnextv2', 'doctor')
    session.run('python', '-m', 'pytest', *(session.posargs or PORTABLE))


@nox.session(python='3.11')
@nox.parametrize('transformers', ['4', '5'])
def foreign(session: nox.Session, transformers: str) -> None:
    """Compare our backbone with the code of DINOv3, EUPE, MMEarth, OpenCLIP and SparK, and with two transformers."""
    borrow(session, ('transformers', 'tokenizers', 'huggingface_hub'))
    session.install({'4': 'transformers>=4.56,<5', '5': 'transformers>=5,<6'}[transformers])
    clones = Path(session.create_tmp()).resolve() / 'clones'
    for name, (repository, commit) in UPSTREAM_CODE.items():
        if not (clones / name).exists():
            address = f'https://github.com/{repository}'
            session.run('git', 'clone', '-q', '--filter=blob:none', '-n', address, str(clones / name), external=True)
        session.run('git', '-C', str(clones / name), 'checkout', '-q', commit, external=True)
    session.env.update(PYTHONPATH=str(ROOT), UPSTREAM_CODE=str(clones))
    session.run('python', '-m', 'pytest', *(session.posargs or ['tests/upstream_equality.py']))


@nox.session(python='3.11')
def fuzz(session: nox.Session) -> None:
    """Read crafted checkpoints for an hour: each is read or rejected, without crashes, memory growth or writes."""
    borrow(session)
    session.env['PYTHONPATH'] = str(ROOT)
    session.run('python', '-W', 'ignore', 'tests/test_checkpoint/crafted.py', *(session.posargs or ['--minutes', '60']))


@nox.session(python=['3.10', '3.12'])
def bare(session: nox.Session) -> None:
    """Run the tests without mmdet, mmseg and compiled operators on another Python, with downloaded packages."""
    install_wheel(
        session, 'torch==2.11.0', 'torchvision==0.26.0', 'mmcv-lite==2.1.0', 'mmpretrain==1.2.0', extras='[dev]'
    )
    session.run('python', '-m', 'pytest', *(session.posargs or BARE))


def install_lock(session: nox.Session, *torch: str) -> None:
    """Download and install the locked packages, with another torch and torchvision if given."""
    lock = (ROOT / 'requirements' / 'lock.txt').read_text()
    first, rest = lock.split('# compiled')[0].split('# rest')
    pinned = [line for line in first.splitlines() if '==' in line]
    session.install(*(torch or pinned), *[line for line in pinned if not line.startswith('torch')])
    session.install('--no-deps', *[line for line in rest.splitlines() if '==' in line])
    session.env['PYTHONPATH'] = str(ROOT)
    session.run('python', '-m', 'mmconvnextv2', 'doctor')


@nox.session(python=['3.12', '3.13'])
def interpreters(session: nox.Session) -> None:
    """Run the portable tests on the locked packages and another Python."""
    install_lock(session)
    session.run('python', '-m', 'pytest', *(session.posargs or PORTABLE))


@nox.session(python='3.11')
def newest(session: nox.Session) -> None:
    """Run the portable tests on the newest torch that has a torchvision, and the locked packages otherwise."""
    install_lock(session, 'torch', 'torchvision')
    session.run('python', '-m', 'pytest', *(session.posargs or PORTABLE))
