"""The probe of frozen features: its numbers are those of plain computations, and training never notices it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from PIL import Image
from scipy.optimize import minimize
from small_models import NARROW
from torch import nn

from mmconvnextv2.checkpoint.load import load_file
from mmconvnextv2.engine.model_state import evaluating
from mmconvnextv2.pretrain import ProbeHook
from mmconvnextv2.pretrain.probe import (
    default_pipeline,
    fit_linear,
    knn_vote,
    labelled_split,
    linear_vote,
    pooled_features,
)
from mmconvnextv2.pretrain.sampler import seeded

CONFIG = Path(__file__).parents[2] / 'configs' / 'fcmae' / 'fcmae_convnextv2-a_1xb64-800e_folder.py'
SIZE, MEAN, STD = 64, 110.0, 60.0


def write_classes(folder, counts, seed=0, noise=190):
    """Write images that need no resizing: stripes of a width of their class, on noise."""
    generator = np.random.default_rng(seed)
    for label, count in enumerate(counts):
        (folder / f'class{label}').mkdir(parents=True)
        for number in range(count):
            stripes = 60 * (np.arange(73) // 2 ** (label + 1) % 2)
            pixels = generator.integers(0, noise, (73, 73, 3)) + stripes[:, None]
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'class{label}' / f'{number}.png')
    return folder


def make_model(drop_path_rate=0.0):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='FCMAE',
            data_preprocessor=dict(mean=[MEAN], std=[STD], to_rgb=True),
            backbone=dict(
                type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False, drop_path_rate=drop_path_rate
            ),
            neck=dict(type='FCMAEDecoder', channels=12),
            head=dict(type='FCMAEHead'),
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def brute_force_knn(features, labels, queries, k, temperature):
    """Vote by the formula, one query and one neighbour at a time."""
    features = features / np.sqrt((features**2).sum(1, keepdims=True))
    queries = queries / np.sqrt((queries**2).sum(1, keepdims=True))
    found = []
    for query in queries:
        cosines = [(float(query @ one), label) for one, label in zip(features, labels)]
        votes = dict.fromkeys(set(labels.tolist()), 0.0)
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[int(label)] += np.exp(cosine / temperature)
        found.append(max(sorted(votes), key=votes.get))
    return found


@pytest.mark.parametrize('k, temperature', [(1, 0.07), (7, 0.07), (7, 10.0), (60, 0.3)])
def test_vote_is_the_formula(k, temperature):
    """The weighted vote equals the sum of exp(cosine / temperature) over the k nearest, one at a time; neither the
    count of classes nor chance decides: another temperature gives other votes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 60)
    features = generator.standard_normal((60, 9)) + labels[:, None] * generator.standard_normal(9) * 0.3
    queries = generator.standard_normal((300, 9)) * 5
    arguments = [torch.from_numpy(one) for one in (features, labels, queries)]
    votes = knn_vote(*arguments, k, temperature)
    assert votes.tolist() == brute_force_knn(features, labels, queries, k, temperature)
    if k == 60:
        assert votes.tolist() != knn_vote(*arguments, k, 100.0).tolist()


def test_vote_does_not_overflow():
    """A small temperature neither overflows nor ties in float32: the nearest neighbour decides."""
    features = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    votes = knn_vote(features, torch.tensor([2, 0, 0]), torch.tensor([[3.0, 0.1], [0.1, 9.0]]), 3, 1e-3)
    assert votes.tolist() == [2, 0]


def test_linear_probe_is_the_optimum():
    """Weight and bias are those that scipy's minimiser finds for the penalised cross-entropy, on features standardised
    by numpy, and decide the queries as those do."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90)
    features = generator.standard_normal((90, 5)) * [1, 9, 1, 1, 4] + labels[:, None] + [0, 100, 0, 0, 7]
    queries = generator.standard_normal((200, 5)) * [1, 9, 1, 1, 4] + 1 + [0, 100, 0, 0, 7]
    scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)

    def objective(flat):
        weight, bias = flat[:15].reshape(3, 5), flat[15:]
        logits = scaled @ weight.T + bias
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(90), labels]
        return losses.mean() + 0.05 / 2 * (weight**2).sum()

    best = minimize(objective, np.zeros(18), method='BFGS', options=dict(gtol=1e-8))
    weight, bias = fit_linear(torch.from_numpy(scaled), torch.from_numpy(labels), 3, 0.05)
    np.testing.assert_allclose(weight.numpy(), best.x[:15].reshape(3, 5), atol=1e-5)
    np.testing.assert_allclose(bias - bias.mean(), best.x[15:] - best.x[15:].mean(), atol=1e-5)
    moved = (queries - features.mean(0)) / (features.std(0) + 1e-6)
    expected = (moved @ best.x[:15].reshape(3, 5).T + best.x[15:]).argmax(1)
    with torch.no_grad():  # as inside a validation loop
        votes = linear_vote(*(torch.from_numpy(one) for one in (features, labels, queries)), 3, 0.05)
    assert votes.tolist() == expected.tolist() and len(set(expected)) == 3


def plain_features(model, paths):
    """Read, crop and normalise with PIL and numpy, run the dense backbone on one image at a time, and average."""
    features = []
    for path in paths:
        pixels = np.asarray(Image.open(path))[4:68, 4:68].astype(np.float32)
        image = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            features.append(model.backbone(image)[-1][0].double().mean((1, 2)).numpy())
    return np.stack(features)


@pytest.mark.parametrize('batch_size, num_workers', [(64, 0), (3, 2)])
def test_scores_are_those_of_plain_features(tmp_path, batch_size, num_workers):
    """On a folder with train and val the scores are those of features computed image by image with PIL, the dense
    backbone and a brute-force vote, whatever the batch."""
    write_classes(tmp_path / 'train', (8, 7, 5))
    write_classes(tmp_path / 'val', (4, 4, 3), seed=1)
    model = make_model(drop_path_rate=0.5).train()
    hook = ProbeHook(str(tmp_path), k=5, image_size=SIZE, batch_size=batch_size, num_workers=num_workers)
    hook.before_train(None)
    scores = hook.evaluate(model)
    parts = []
    for part in ('train', 'val'):
        paths = sorted((tmp_path / part).rglob('*.png'), key=lambda path: (path.parent.name, path.name))
        parts.append((plain_features(model.eval(), paths), np.array([int(path.parent.name[-1]) for path in paths])))
    model.train()
    (features, labels), (queries, truth) = parts
    np.testing.assert_allclose(pooled_features(model, hook._train[0]).numpy(), features, rtol=1e-4, atol=1e-5)
    votes = brute_force_knn(features, labels, queries, 5, 0.07)
    assert scores['knn_top1'] == pytest.approx(100 * np.mean(votes == truth))
    linear = linear_vote(*map(torch.from_numpy, (features, labels, queries)), 3, 1e-3).numpy()
    assert scores['linear_top1'] == pytest.approx(100 * np.mean(linear == truth))


def test_plain_stripes_are_told_apart(tmp_path):
    """Classes that differ plainly score 100 percent by both probes, and the linear one can be left out."""
    write_classes(tmp_path, (10, 10), noise=30)
    model = make_model()
    for linear, names in ((True, ['knn_top1', 'linear_top1']), (False, ['knn_top1'])):
        hook = ProbeHook(str(tmp_path), k=5, image_size=SIZE, linear=linear)
        hook.before_train(None)
        assert hook.evaluate(model) == dict.fromkeys(names, 100.0)


def run(folder, labelled, work_dir, hooks):
    """Train the shipped config, narrow and with DropPath, for two epochs."""
    cfg = Config.fromfile(str(CONFIG))
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'train_cfg.max_epochs': 2,
            'train_dataloader.dataset.data_root': str(folder),
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.pin_memory': False,
            'train_dataloader.persistent_workers': False,
            'train_dataloader.dataset.pipeline.1.scale': SIZE,
            'default_hooks.checkpoint.interval': 1,
            'model.backbone.drop_path_rate': 0.5,
            'optim_wrapper.optimizer.lr': 0.1,
            'model.backbone.frozen_stages': 1,
        }
    )
    cfg.experiment_name = f'probe_{work_dir.name}'  # equal ones would share the list of checkpoints to keep
    cfg.custom_hooks = hooks
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    cfg.model.backbone.arch, cfg.model.neck.channels = NARROW, 12
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_training_goes_on_bit_for_bit(tmp_path):
    """With both hooks, after DropPath's draws of two epochs, weights and moments are those without it; the scores are
    in the message hub, the scalars of the local backend and TensorBoard's events, once an epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    labelled = write_classes(tmp_path / 'labelled', (5, 5))
    hook = dict(type='ProbeHook', data_root=str(labelled), interval=1, k=3, image_size=SIZE)
    for part in ('train', 'val'):  # a segmentation set of two classes
        for kind in ('images', 'labels'):
            (tmp_path / 'scenes' / kind / part).mkdir(parents=True)
        pixels = np.zeros((64, 64), dtype=np.uint8)
        pixels[:, 32:] = 1
        Image.fromarray(pixels).save(tmp_path / 'scenes' / 'labels' / part / '0.png')
        Image.fromarray(np.stack([pixels * 200] * 3, -1)).save(tmp_path / 'scenes' / 'images' / part / '0.png')
    dense = dict(type='DenseProbeHook', data_root=str(tmp_path / 'scenes'), interval=1, image_size=64)
    quiet = run(labelled, labelled, tmp_path / 'quiet', [])
    probed = run(labelled, labelled, tmp_path / 'probed', [hook, dense])
    for epoch in (1, 2):
        without, with_hook = (load_file(tmp_path / name / f'epoch_{epoch}.pth') for name in ('quiet', 'probed'))
        for name, value in without['state_dict'].items():
            assert torch.equal(with_hook['state_dict'][name], value), name
        for index, moments in without['optimizer']['state'].items():
            assert torch.equal(with_hook['optimizer']['state'][index]['exp_avg_sq'], moments['exp_avg_sq'])
    assert [module.training for module in quiet.model.modules()] == [m.training for m in probed.model.modules()]
    scalars = [json.loads(line) for line in next((tmp_path / 'probed').rglob('scalars.json')).read_text().splitlines()]
    events = EventAccumulator(str(next((tmp_path / 'probed').rglob('events.*')).parent)).Reload()
    for name in ('knn_top1', 'linear_top1', 'dense_mIoU'):
        history = probed.message_hub.get_scalar(name).data[0].tolist()
        assert len(history) == 2 and all(0 <= score <= 100 for score in history)
        assert [line[name] for line in scalars if name in line] == history
        np.testing.assert_allclose([event.value for event in events.Scalars(name)], history, rtol=1e-6)


def test_frozen_restores_modes_and_generators():
    """Inside the block nothing trains and no gradient is kept; after it, even after an error, each module's own mode
    and the generators of torch, numpy and Python are as they were."""
    import random

    model = make_model()
    model.train()
    model.neck.eval()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    with pytest.raises(KeyError):
        with evaluating(model), seeded(0):
            assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
            torch.rand(5), np.random.rand(), random.random()
            raise KeyError
    assert model.training and model.backbone.stages[0].training
    assert not model.neck.training and not model.neck.blocks[0].training
    assert (torch.rand(1), np.random.rand(), random.random()) == expected and torch.is_grad_enabled()


def test_split_is_fixed_and_even(tmp_path):
    """Without train and val each class gives its share at even steps, in order of name, and no image is in both."""
    write_classes(tmp_path, (10, 5, 4))
    (train, labels), (test, truth), num_classes = labelled_split(str(tmp_path), default_pipeline(SIZE), 0.2)
    names = [
        [train.dataset.get_data_info(index)['img_path'][-len('class0/0.png') :] for index in part.indices]
        for part in (train, test)
    ]
    assert names[1] == ['class0/4.png', 'class0/9.png', 'class1/4.png'] and truth.tolist() == [0, 0, 1]
    assert len(names[0]) == 16 and not set(names[0]) & set(names[1]) and num_classes == 3
    assert labels.tolist() == [int(name[5]) for name in names[0]]


def test_mistakes_are_refused_before_training(tmp_path):
    """A folder that cannot be split, too few images and numbers out of range are refused with what to give."""
    with pytest.raises(FileNotFoundError, match="'/nowhere' of ProbeHook does not exist"):
        ProbeHook('/nowhere').before_train(None)
    write_classes(tmp_path / 'few', (3, 3))
    with pytest.raises(ValueError, match='k=20 of ProbeHook: .* 4 images to learn from'):
        ProbeHook(str(tmp_path / 'few'), val_share=0.4).before_train(None)
    with pytest.raises(ValueError, match='0 of .* to test on'):
        ProbeHook(str(tmp_path / 'few'), k=1).before_train(None)
    write_classes(tmp_path / 'half' / 'train', (3, 3))
    with pytest.raises(ValueError, match="has only a folder 'train'"):
        ProbeHook(str(tmp_path / 'half'), k=1).before_train(None)
    write_classes(tmp_path / 'half' / 'val', (3, 3, 1))
    with pytest.raises(ValueError, match=r"'class1'\) to learn from and 7 of .*'class2'\) to test on"):
        ProbeHook(str(tmp_path / 'half'), k=1).before_train(None)
    write_classes(tmp_path / 'one', (9,))
    with pytest.raises(ValueError, match='two or more'):
        ProbeHook(str(tmp_path / 'one'), k=1).before_train(None)
    for name, value in (('k', 0), ('interval', 0), ('temperature', 0.0), ('penalty', -1.0), ('val_share', 1)):
        with pytest.raises(ValueError, match=f'{name}={value} of ProbeHook'):
            ProbeHook('data', **{name: value})


def share_features(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.set_num_threads(1)
    part = labelled_split(f'{folder}/labelled', default_pipeline(SIZE), 0.3)[0]
    features = pooled_features(make_model(), part[0], batch_size=2)
    torch.save(features, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_images(tmp_path):
    """Two processes, with an odd number of images, each get the features of one process, in order."""
    write_classes(tmp_path / 'labelled', (8, 3))
    part = labelled_split(str(tmp_path / 'labelled'), default_pipeline(SIZE), 0.3)[0]
    assert len(part[0]) % 2 == 1
    expected = pooled_features(make_model(), part[0])
    torch.multiprocessing.spawn(share_features, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
