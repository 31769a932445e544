"""The backbone needs torch and mmengine only."""

import subprocess
import sys

CODE = """
import sys
from importlib.abc import MetaPathFinder

BLOCKED = {'mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'MinkowskiEngine', 'triton'}
tried = set()

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        package = name.partition('.')[0]
        if package in BLOCKED:
            tried.add(package)
            raise ModuleNotFoundError(f'{name} is blocked', name=name)

sys.meta_path.insert(0, Block())
import torch
tried.clear()
from mmconvnextv2 import ConvNeXtV2
model = ConvNeXtV2(dict(depths=(1, 1, 1, 1), channels=(4, 4, 4, 4)))
model.init_weights()
images = torch.randn(2, 3, 64, 64)
dense = model(images)
for execution in ('masked', 'packed'):
    for one, other in zip(model(images, torch.arange(4).expand(2, 4), execution), dense, strict=True):
        torch.testing.assert_close(one, other)
try:
    model(images, torch.tensor([[0], [1]]), 'minkowski')
except ImportError as error:
    assert 'make minkowski' in str(error), error
else:
    raise AssertionError('MinkowskiEngine was not blocked')
print('ran; loaded:', sorted(BLOCKED & {name.partition('.')[0] for name in sys.modules}))
"""


def test_optional_packages_are_optional():
    """With every optional package blocked a fresh interpreter runs dense, masked and packed, and names what a
    MinkowskiEngine run lacks."""
    result = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith('ran; loaded: []')
