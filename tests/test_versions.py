"""A package of the stack in a wrong version is refused in one sentence; an absent one is not missed."""

import subprocess
import sys
from importlib import metadata

import pytest
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmconvnextv2.utils import compat as versions
from mmconvnextv2.utils import config as recipes


def install_fake(folder, name, version):
    """Write the metadata of a distribution that importlib.metadata finds when ``folder`` is on sys.path."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def test_installed_stack_is_accepted():
    """The stack that runs this test is one that works."""
    assert list(versions.wrong_versions()) == []


@pytest.mark.parametrize(
    'name, version',
    [
        ('mmcv', '1.7.2'),
        ('mmcv', '2.2.0'),
        ('mmcv-lite', '2.2.0'),
        ('mmdet', '2.28.0'),
        ('torch', '1.13.1'),
        ('mmsegmentation', '0.30.0'),
    ],
)
def test_wrong_version_is_named(tmp_path, monkeypatch, name, version):
    """The sentence names the package, the version found and the versions that work."""
    install_fake(tmp_path, name, version)
    monkeypatch.syspath_prepend(str(tmp_path))
    first, bound = versions.WORKING[name.removesuffix('-lite')]
    sentence = f'{name} {version} is installed, mmconvnextv2 works with {name} >= {first}, < {bound}'
    assert metadata.version(name) == version
    with pytest.raises(ImportError) as error:
        versions.check_versions()
    assert sentence in str(error.value) and 'requirements/lock.txt' in str(error.value)


def test_absent_package_is_fine(monkeypatch):
    """A package that is not installed is skipped."""
    monkeypatch.setattr(versions, 'WORKING', {'a-package-nobody-has': ('1', '2')})
    versions.check_versions()


def test_name_of_what_is_installed(tmp_path, monkeypatch):
    """A distribution is named with its version, a fork in its place by its own name; upstream goes first."""
    install_fake(tmp_path, 'otherone', '3.4')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(versions, 'FORKS', {'upstreamone': 'otherone', 'absent': 'absent-too'})
    assert versions.name_and_version('upstreamone') == 'otherone 3.4'
    install_fake(tmp_path, 'upstreamone', '1.2')
    assert versions.name_and_version('upstreamone') == 'upstreamone 1.2'
    for name in ('absent', 'of no fork'):
        with pytest.raises(metadata.PackageNotFoundError):
            versions.name_and_version(name)


def test_import_refuses_a_wrong_version(tmp_path):
    """``import mmconvnextv2`` itself stops with the sentence, in a fresh interpreter."""
    install_fake(tmp_path, 'mmpretrain', '0.9.0')
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import mmconvnextv2'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'ImportError: mmpretrain 0.9.0 is installed, mmconvnextv2 works with mmpretrain >= 1.2.0' in result.stderr


@pytest.mark.parametrize(
    'installed, value',
    [
        ({'onedl-mmsegmentation': '1.4.2'}, 'fork'),
        ({'mmsegmentation': '1.2.2', 'onedl-mmsegmentation': '1.4.2'}, 'upstream'),
    ],
)
def test_bases_of_the_fork_are_found(tmp_path, monkeypatch, installed, value):
    """``mmseg::`` bases come from the fork's distribution where it is the only one, and otherwise from upstream's."""
    for name, folder in (('onedl_mmsegmentation', 'fork'), ('mmsegmentation', 'upstream')):
        configs = tmp_path / folder / 'mmseg' / '.mim' / 'configs' / '_base_'
        configs.mkdir(parents=True)
        (configs / 'own.py').write_text(f'origin = {folder!r}\n')
        (configs.parents[1] / 'model-index.yml').write_text('Import: []\n')
        install_fake(tmp_path / folder, name, '1.4.2')
        (tmp_path / folder / f'{name}-1.4.2.dist-info' / 'top_level.txt').write_text('mmseg\n')
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    (tmp_path / 'mine.py').write_text("_base_ = 'mmseg::_base_/own.py'\n")
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(recipes, 'installed_version', installed.get)
    recipes.register_names()
    assert Config.fromfile(str(tmp_path / 'mine.py')).origin == value
