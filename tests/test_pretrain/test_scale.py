"""What each process of several gets, and the counts behind the cost page."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fcmae_runs import BATCH, assert_same, in_processes, make_config, read, train, write_images
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import mmconvnextv2.pretrain  # noqa: F401, registers the data set

ROOT = Path(__file__).parents[2]
DEPTHS, WIDTHS = (1, 2, 3, 1), (8, 16, 24, 40)


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import cost

    yield cost
    for name in ('contestants', 'cost', 'loader', 'measure'):
        sys.modules.pop(name, None)


def read_batches(images, folder, batch):
    """Return, for each batch of an epoch, the image numbers and the visible cells that this process gets."""
    cfg = make_config(images, folder, batch)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    return [[(one.sample_idx, tuple(one.visible_cells)) for one in content['data_samples']] for content in loader]


def write_batches(images, folder, batch):
    torch.save(read_batches(images, folder, batch), folder / f'{dist.get_rank()}.pth')


@pytest.mark.slow
def test_processes_share_each_batch(tmp_path):
    """Two processes with half the batch each read, step by step, halves of the batch of one process: the same images
    with the same masks, none twice, and each process as many steps."""
    images = write_images(tmp_path / 'images', 3 * BATCH + 1)
    wanted = read_batches(images, tmp_path, BATCH)
    in_processes(write_batches, images, tmp_path, BATCH // 2, folder=tmp_path)
    shares = [torch.load(tmp_path / f'{rank}.pth', weights_only=False) for rank in range(2)]
    assert len(wanted) == 3 and [len(share) for share in shares] == [3, 3]
    for whole, *halves in zip(wanted, *shares):
        assert [len(half) for half in halves] == [BATCH // 2] * 2
        assert sorted(sum(halves, [])) == sorted(whole) and len(set(whole)) == BATCH


DOUBLE = {'model.type': 'DoubleFCMAE', 'param_scheduler': None}


def train_saving_memory(images, folder):
    options = {**DOUBLE, 'model.backbone.with_cp': True, 'optim_wrapper.accumulative_counts': 2}
    train(make_config(images, folder / 'ddp', BATCH // 4, **options))
    options.update(runner_type='FlexibleRunner', strategy=dict(type='FSDP2Strategy'))
    train(make_config(images, folder / 'fsdp', BATCH // 4, **options))


@pytest.mark.slow
def test_all_that_saves_memory_together(tmp_path):
    """Two processes that recompute blocks and accumulate two quarters of the batch, replicated or sharded, end in the
    weights and moments of one process that does none of it, to 1e-9 in float64."""
    images = write_images(tmp_path / 'images', 2 * BATCH)
    in_processes(train_saving_memory, images, tmp_path, folder=tmp_path)
    train(make_config(images, tmp_path / 'one', **DOUBLE))

    def updated(name, iteration):
        content = read(tmp_path / name, iteration)
        return dict(weights=content['state_dict'], moments=content['optimizer']['state'])

    for name in ('ddp', 'fsdp'):
        assert_same(updated(name, 8), updated('one', 4), tolerance=1e-9)


def test_multiply_adds_of_a_step(cost):
    """A forward's multiply-adds are those of every matrix product over visible sites, of the decoder over all cells and
    the prediction of hidden ones, plus the depthwise convolutions of visible sites in the first stage and of whole maps
    in the others. Backward makes it three times as many, except for the gradient of the image."""
    counted = cost.count('atto', arch=dict(depths=DEPTHS, channels=WIDTHS))
    visible, cells, sides = 19, 49, (8, 4, 2, 1)
    sites = [visible * side**2 for side in sides]
    stem = sites[0] * 48 * WIDTHS[0]
    products = stem + sum(sites[stage] * 4 * WIDTHS[stage - 1] * WIDTHS[stage] for stage in (1, 2, 3))
    products += sum(depth * 8 * width**2 * number for depth, width, number in zip(DEPTHS, WIDTHS, sites))
    products += cells * (WIDTHS[-1] * 512 + 8 * 512**2)
    predictions = (cells - visible) * 512 * 3072
    maps = [49 * depth * width * side**2 for depth, width, side in zip(DEPTHS, WIDTHS, sides)]  # per cell
    assert counted.forward == products + predictions + visible * maps[0] + cells * (sum(maps[1:]) + 49 * 512)
    assert counted.step == 3 * counted.forward - stem


def test_bytes_kept_are_those_of_a_real_step(cost):
    """Counted on tensors without data, what backward keeps is what a real forward keeps, to 1 %, in float32 and under
    autocast; recomputing blocks keeps less."""
    from measure import saved_bytes
    from torch._subclasses.fake_tensor import FakeTensorMode

    arch = dict(depths=DEPTHS, channels=WIDTHS)
    model, images = cost.build('atto', arch=arch), cost.random_batch(2)
    for bf16 in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            wanted = saved_bytes(lambda: model.loss(*images)['loss'], model)
        with FakeTensorMode(allow_non_fake_inputs=True):
            found = cost.count_kept(cost.build('atto', arch=arch), 2, bf16)
        assert found == pytest.approx(wanted, rel=0.01)
    counted = cost.count('atto', arch=arch)
    assert counted.recomputed < counted.kept


def test_the_page_holds_what_is_counted(cost):
    """The row of Base in docs/scale.md is what the script counts today, to 3 %."""
    row = re.search(r'^\| base \|.*$', (ROOT / 'docs' / 'scale.md').read_text(), re.MULTILINE)[0]
    written, found = (
        [float(cell) for cell in text.split('|')[2:-1]]
        for text in (row, cost.counted_table(dict(base=cost.count('base'))).splitlines()[-1])
    )
    assert len(written) == 6 and written == pytest.approx(found, rel=0.03)
