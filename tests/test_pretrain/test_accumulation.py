"""Small batches whose gradients are accumulated make the step of the large batch, in one process and in several."""

import pytest
from fcmae_runs import BATCH, assert_same, in_processes, make_config, read, train, write_images

DOUBLE = {'model.type': 'DoubleFCMAE', 'param_scheduler': None, 'optim_wrapper.clip_grad': dict(max_norm=0.05)}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'), 3 * BATCH)


@pytest.fixture(scope='module')
def large(images, tmp_path_factory):
    """Weights and moments after six updates with the large batch, at a constant rate and with clipped gradients."""
    folder = tmp_path_factory.mktemp('large')
    train(make_config(images, folder, **DOUBLE))
    return updated(folder, 6)


def updated(folder, iteration):
    content = read(folder, iteration)
    return dict(weights=content['state_dict'], moments=content['optimizer']['state'])


@pytest.mark.parametrize('counts', (2, 4))
def test_accumulated_steps_are_those_of_the_large_batch(images, large, tmp_path, counts):
    """With 2 and 4 iterations an update the weights and moments after six updates are the large batch's, to 1e-9 in
    float64: every image hides as many cells, so the mean of the means is the mean."""
    train(make_config(images, tmp_path, BATCH // counts, **DOUBLE, **{'optim_wrapper.accumulative_counts': counts}))
    assert_same(updated(tmp_path, 6 * counts), large, tolerance=1e-9)
    assert updated(tmp_path, 6 * counts - 1)['moments'][0]['step'] == 5


def train_in_two(images, folder):
    options = {**DOUBLE, 'optim_wrapper.accumulative_counts': 2}
    train(make_config(images, folder / 'ddp', BATCH // 4, **options))
    options.update(runner_type='FlexibleRunner', strategy=dict(type='FSDP2Strategy'))
    train(make_config(images, folder / 'fsdp', BATCH // 4, **options))


@pytest.mark.slow
def test_accumulation_in_two_processes(images, large, tmp_path):
    """Two processes of a quarter of the batch that accumulate twice make the same steps, replicated or sharded."""
    in_processes(train_in_two, images, tmp_path, folder=tmp_path)
    assert_same(updated(tmp_path / 'ddp', 12), large, tolerance=1e-9)
    assert_same(updated(tmp_path / 'fsdp', 12), large, tolerance=1e-9)
