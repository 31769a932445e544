"""Checkpoints of a run hold tensors and plain types only, and lose nothing by it."""

import subprocess
import sys
from collections import Counter, OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mmconvnextv2.checkpoint.plain import restore_histories, to_plain

sys.path.insert(0, str(Path(__file__).parents[1] / 'test_reliability'))


def test_content_stays():
    """Numbers, lists, module versions and logged scalars survive; no numpy, mmengine or deque type does."""
    state = torch.nn.BatchNorm2d(2).state_dict()
    given = dict(
        meta=ConfigDict(palette=np.array([[1, 2, 3]]), number=np.float64(0.5), flag=np.bool_(True), names=('a', 'b')),
        state_dict=state,
        milestones=Counter({3: 1}),
        steps=deque([1, 2]),
        scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1], 10)),
    )
    plain = to_plain(given)
    assert plain['meta'] == dict(palette=[[1, 2, 3]], number=0.5, flag=True, names=('a', 'b'))
    assert type(plain['meta']) is dict and type(plain['meta']['number']) is float and plain['steps'] == [1, 2]
    assert type(plain['state_dict']) is OrderedDict and plain['state_dict']._metadata == state._metadata
    assert all(torch.equal(plain['state_dict'][name], value) for name, value in state.items())
    assert type(plain['milestones']) is Counter and plain['milestones'][3] == 1
    restored = restore_histories(plain['scalars'])['loss']
    assert restored.max_length == 10 and [list(one) for one in restored.data] == [[1.0, 2.0], [1, 1]]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """The last checkpoint of a short run with a moving average."""
    from real_runs import make_config, train, write_images

    folder = tmp_path_factory.mktemp('plain')
    cfg = make_config(write_images(folder / 'images'), folder / 'run')
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    train(cfg)
    return folder / 'run' / (folder / 'run' / 'last_checkpoint').read_text().rsplit('/', 1)[-1]


def test_torch_reads_them(checkpoint):
    """torch's own reader takes a checkpoint of a run with its default list of types, in a process that never imports
    mmengine or numpy's pickles."""
    code = f"""
import sys, torch
content = torch.load({str(checkpoint)!r}, weights_only=True)
assert not [name for name in sys.modules if name.startswith("mmengine")]
print(sorted(content), content["message_hub"]["log_scalars"].keys() >= {{"train/loss"}})
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    expected = ['ema_state_dict', 'message_hub', 'meta', 'optimizer', 'param_schedulers', 'state_dict']
    assert run.stdout == f'{expected} True\n', run.stderr
