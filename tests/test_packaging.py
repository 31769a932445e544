"""An installed wheel carries the configs and tools, and works outside the clone."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmconvnextv2 import ConvNeXtV2

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    ignored = shutil.ignore_patterns('.git', '.venv', 'work_dirs', 'data', 'build', '*.egg-info', '__pycache__')
    source = shutil.copytree(ROOT, folder / 'source', symlinks=True, ignore=ignored)
    built = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w',
                            str(folder), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    wheel, = folder.glob('*.whl')
    installed = subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target',
                                str(folder / 'site'), str(wheel)], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    return folder / 'site'


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


def test_config_of_the_wheel_builds_outside_the_clone(site, tmp_path):
    """From another folder, with the wheel alone on the path, a recipe's backbone is built from the wheel's code."""
    code = ('import mmconvnextv2, os; from mmengine.config import Config; from mmengine.registry import MODELS\n'
            'home = os.path.dirname(mmconvnextv2.__file__)\n'
            'leaf = "mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py"\n'
            'cfg = Config.fromfile(os.path.join(home, ".mim", "configs", leaf))\n'
            'print(home, sum(p.numel() for p in MODELS.build(cfg.model.backbone).parameters()))')
    run = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                         env={'PYTHONPATH': str(site), 'PATH': '/usr/bin:/bin'})
    assert run.returncode == 0, run.stderr[-2000:]
    count = sum(parameter.numel() for parameter in ConvNeXtV2('atto').parameters())
    assert run.stdout.split() == [str(site / 'mmconvnextv2'), str(count)]
