"""An installed wheel carries the configs and tools, and works outside the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.utils.compat import LITE, WORKING

ROOT = Path(__file__).parents[1]


def pip(*arguments):
    """Run pip on what is here; nothing is fetched."""
    done = subprocess.run([sys.executable, '-m', 'pip', *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build_wheel(source, folder):
    """Build the wheel of a folder or of a source distribution."""
    pip('wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(folder), str(source))
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the clone, in which building leaves its traces."""
    ignored = shutil.ignore_patterns('.git', '.nox', '.venv', 'work_dirs', 'data', 'build', '*.egg-info', '__pycache__')
    return shutil.copytree(ROOT, tmp_path_factory.mktemp('clone') / 'source', symlinks=True, ignore=ignored)


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    pip('install', '-q', '--no-deps', '--no-index', '--target', str(folder), str(wheel))
    return folder


def test_wheel_carries_every_config_and_tool(site):
    """Each config and tool of the clone is a real file of the wheel, byte for byte."""
    carried = site / 'mmconvnextv2' / '.mim'
    for name in ('configs', 'tools'):
        files = [path for path in (ROOT / name).rglob('*') if path.suffix in ('.py', '.sh', '.yml')]
        assert len(files) > 4
        for path in files:
            assert (carried / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_wheel_carries_no_link_and_no_test(site):
    """Nothing installed points back into the clone, and the tests stay at home."""
    assert not [path for path in site.rglob('*') if path.is_symlink()]
    assert sorted(path.name for path in site.iterdir() if not path.name.endswith('.dist-info')) == ['mmconvnextv2']


def test_source_distribution_makes_the_same_wheel(source, wheel, tmp_path):
    """The wheel built from the source distribution, outside the clone, has the files of the clone's, byte for byte."""
    build = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    built = subprocess.run([sys.executable, '-c', build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (distribution,) = tmp_path.glob('*.tar.gz')
    ours, theirs = (zipfile.ZipFile(path) for path in (wheel, build_wheel(distribution, tmp_path)))
    assert len(ours.namelist()) > 200 and sorted(ours.namelist()) == sorted(theirs.namelist())
    for name in ours.namelist():
        assert name.endswith('RECORD') or ours.read(name) == theirs.read(name), name


def test_config_of_the_wheel_builds_outside_the_clone(site, tmp_path):
    """From another folder, with the wheel alone on the path, a recipe's backbone is built from the wheel's code."""
    code = (
        'import mmconvnextv2, os; from mmengine.config import Config; from mmengine.registry import MODELS\n'
        'home = os.path.dirname(mmconvnextv2.__file__)\n'
        'leaf = "mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py"\n'
        'cfg = Config.fromfile(os.path.join(home, ".mim", "configs", leaf))\n'
        'print(home, sum(p.numel() for p in MODELS.build(cfg.model.backbone).parameters()))'
    )
    run = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(site), 'PATH': '/usr/bin:/bin'},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    count = sum(parameter.numel() for parameter in ConvNeXtV2('atto').parameters())
    assert run.stdout.split() == [str(site / 'mmconvnextv2'), str(count)]


def test_wheel_carries_every_document_of_the_configs(site):
    """The pages next to the configs are packaged with them."""
    pages = list((ROOT / 'configs').rglob('*.md'))
    assert len(pages) > 1
    for page in pages:
        assert (site / 'mmconvnextv2' / '.mim' / page.relative_to(ROOT)).read_bytes() == page.read_bytes()


def test_requirements_are_the_versions_that_work(site):
    """The extras require what the package accepts when it is imported, bound for bound; none requires mmcv."""
    (distribution,) = metadata.distributions(path=[str(site)])
    asked = {}
    for requirement in map(Requirement, distribution.requires):
        assert requirement.name != 'mmcv', 'pip would compile it, or write over one that is compiled'
        if requirement.name in (*WORKING, *LITE.values()):
            asked.setdefault(requirement.name, set()).add(str(requirement.specifier))
    accepted = {LITE.get(name, name): {f'<{bound},>={first}'} for name, (first, bound) in WORKING.items()}
    assert asked == accepted
    extras = {
        'ops': 'mmcv-lite',
        'det': 'mmdet',
        'seg': 'mmsegmentation',
        'pretrain': 'mmpretrain',
        'minkowski': 'MinkowskiEngine',
        'dev': 'pytest',
    }
    for extra, name in extras.items():
        assert any(
            requirement.name == name and requirement.marker and requirement.marker.evaluate({'extra': extra})
            for requirement in map(Requirement, distribution.requires)
        ), extra


def test_names_of_configs_are_unique():
    """``mim train mmconvnextv2 NAME`` finds a recipe by its file's name, so no two recipes have the same. ``swaps`` has
    names of 0.1, behind those of the recipes in alphabetical order."""
    others = ('_base_', 'quickstart', 'swaps')
    names = [path.name for path in (ROOT / 'configs').rglob('*.py') if path.parent.name not in others]
    assert len(names) == len(set(names)) > 50


RECIPES = (
    'mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py',
    'upernet/upernet_convnextv2-a_160k_ade20k-512x512.py',
    'fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py',
    'quickstart/upernet.py',
    'classification/convnextv2-a_fcmae-ft_in1k-224.py',
)
COMPARE = """
import sys
from mmengine.config import Config
from mmconvnextv2 import read_config
home, recipes = sys.argv[1], sys.argv[2:]
for number, name in enumerate(recipes):
    open(f'{number}.py', 'w').write(f"_base_ = 'mmconvnextv2::{name}'")
    mine, recipe = read_config(f'{number}.py'), Config.fromfile(f'{home}/.mim/configs/{name}')
    assert mine._cfg_dict == recipe._cfg_dict, name
print('equal', len(recipes))
"""


@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_config_that_starts_from_a_recipe_is_the_recipe(site, tmp_path, kind):
    """Outside the clone a config whose only line names a recipe of the package equals it, scopes of types included,
    from a wheel and from an editable install alike."""
    home = site / 'mmconvnextv2' if kind == 'wheel' else ROOT / 'mmconvnextv2'
    run = subprocess.run(
        [sys.executable, '-c', COMPARE, str(home), *RECIPES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(home.parent), 'PATH': '/usr/bin:/bin'},
    )
    assert run.stdout == f'equal {len(RECIPES)}\n', run.stderr[-2000:]


def test_tools_of_the_wheel_run_by_name(site, tmp_path):
    """``python -m mmconvnextv2 TOOL`` runs the tool with its arguments, lists the tools, and refuses other names."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, '-m', 'mmconvnextv2', *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={'PYTHONPATH': str(site), 'PATH': '/usr/bin:/bin'},
        )

    listed = run().stdout
    assert all(path.stem in listed for path in (ROOT / 'tools').glob('*.py'))
    wrong = run('trian')
    assert wrong.returncode == 1 and "no tool 'trian'" in wrong.stderr
    mistaken = run('train', 'absent.py')
    assert mistaken.returncode == 1 and mistaken.stderr.splitlines()[-1].startswith("error: config='absent.py'")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec('onnxruntime'), reason='needs onnxruntime: make export')
def test_page_of_the_installed_package(site, tmp_path):
    """With the wheel alone on the path, everything that docs/installed.md describes can be done in an empty folder, and
    prints what it shows: train, test, predict for segmentation and detection, export, convert."""
    run = subprocess.run(
        [sys.executable, str(ROOT / 'tests' / 'wheel_story.py'), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(site)},
    )
    output = run.stdout[-6000:] + run.stderr[-6000:]
    assert run.returncode == 0 and run.stdout.endswith('the story ended well\n'), output
