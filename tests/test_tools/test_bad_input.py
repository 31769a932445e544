"""A user's mistake ends as one line that says what to do, with status 1, and leaves no checkpoint and no results."""

import json
import os

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

TASKS = ('fcmae', 'mask-rcnn', 'upernet')


def refused(call, work_dir, *pieces):
    """Assert that a run stops with one line that holds the pieces, and nothing written but logs."""
    with pytest.raises(SystemExit) as stop:
        call()
    message = stop.value.code
    assert isinstance(message, str) and message.startswith('error: ') and '\n' not in message
    for piece in pieces:
        assert piece in message, message
    assert not [path for path in work_dir.rglob('*') if path.suffix in ('.pth', '.pkl')]
    assert not (work_dir / 'last_checkpoint').exists()


@pytest.mark.parametrize(
    'option, pieces',
    [
        ('train_dataloader.dataset.pipeline.1.scale=72', ('72x72', 'multiples of 32', 'change the size of the crop')),
        (
            'train_dataloader.dataset.pipeline.3.mask_ratio=0.99',
            ('mask_ratio=0.99', 'masks every cell', '0.25', '0.75'),
        ),
        ('train_dataloader.dataset.pipeline.3.mask_ratio=1e-12', ('mask_ratio=1e-12', 'masks no cell', '0.25', '0.75')),
        ('train_dataloader.dataset.pipeline.3.mask_ratio=1.0', ('mask_ratio=1.0', '(0, 1)')),
        ('model.backbone.arch=medium', ("arch='medium'", 'choose from', 'atto')),
    ],
    ids=['size', 'masks all', 'masks none', 'ratio 1', 'arch'],
)
@pytest.mark.parametrize('num_workers', [0, 1])
def test_pretraining(tools, tmp_path, option, pieces, num_workers):
    """Size, mask ratio and arch are named with what is allowed, in the main process and from a worker of the loader."""
    options = [option, f'train_dataloader.num_workers={num_workers}']
    refused(lambda: tools.train('fcmae', tmp_path, *options), tmp_path, *pieces)


@pytest.mark.parametrize(
    'option, pieces',
    [
        (
            'param_scheduler.0.end=-5',
            ("type='LinearLR' of the config refuses its arguments", "'end': -5", 'larger than'),
        ),
        ('train_cfg.max_iters=two', ("train_cfg.max_iters='two': expected a whole number",)),
        ('model.decode_head.channels=-4', ("type='UPerHead'", "'channels': -4", 'negative dimension')),
        ('default_hooks.checkpoint.save_best=foo', ("type='VerifiedCheckpointHook'", "'save_best': 'foo'")),
        ('train_dataloader.batch_size=-1', ("a data loader with {'batch_size': -1", 'positive integer')),
        ('custom_imports.imports.0=a', ('--cfg-options custom_imports.imports.0=a does not fit the config',)),
        ('optim_wrapper.optimizer.lr=fast', ("optim_wrapper.optimizer.lr='fast': expected a number",)),
    ],
)
def test_arguments_that_libraries_refuse(tools, tmp_path, option, pieces):
    """What mmengine, mmseg and torch refuse of a config is named with its class, arguments and the reason."""
    refused(lambda: tools.train('upernet', tmp_path, option), tmp_path, *pieces)


@pytest.mark.parametrize(
    'option, pieces',
    [
        (
            'val_evaluator.iou_metrics=mFoo',
            ('val_evaluator or test_evaluator (IoUMetric) failed with KeyError', 'mFoo'),
        ),
        (
            'default_hooks.checkpoint.save_best=mIou',
            ("default_hooks.checkpoint.save_best='mIou' is not among the metrics", 'mIoU'),
        ),
    ],
)
def test_metrics_and_hooks_that_fail(tools, tmp_path, option, pieces):
    """A metric or hook in which a library's code fails, after training began, is named in one line."""
    with pytest.raises(SystemExit) as stop:
        tools.train('upernet', tmp_path, option)
    assert stop.value.code.startswith('error: ') and '\n' not in stop.value.code
    assert all(piece in stop.value.code for piece in pieces), stop.value.code


class Forgetful(Hook):
    """A hook of the user's own, with a bug."""

    def before_train(self, runner):
        return {}['no such key']


def test_bugs_of_own_hooks_keep_their_traceback(tools, tmp_path, monkeypatch):
    """A KeyError that a hook of the user's own raises is not taken for a mistake in the config."""
    monkeypatch.setitem(HOOKS.module_dict, 'Forgetful', Forgetful)
    with pytest.raises(KeyError, match='no such key'):
        tools.train('upernet', tmp_path, 'default_hooks.own.type=Forgetful')


@pytest.mark.parametrize('task', TASKS)
def test_missing_data(tools, tmp_path, task):
    """A data folder that is not there is named with its config key before anything starts."""
    option = 'train_dataloader.dataset.data_root=/nowhere/images'
    refused(
        lambda: tools.train(task, tmp_path, option),
        tmp_path,
        'train_dataloader.dataset.data_root',
        '/nowhere/images',
        '--cfg-options',
    )


@pytest.fixture
def bad_files(tmp_path):
    """A truncated file, one of another model, and one that is not there; each with what the message says."""
    folder = tmp_path / 'files'
    folder.mkdir()
    torch.save(dict(state_dict={'backbone.layer1.conv.weight': torch.zeros(64, 64)}), folder / 'foreign.pt')
    whole = (folder / 'foreign.pt').read_bytes()
    (folder / 'truncated.pt').write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize('kind', ['truncated', 'foreign', 'missing'])
@pytest.mark.parametrize('use', ['load_from', 'resume', 'init_cfg', 'test'])
def test_bad_checkpoint(tools, tmp_path, bad_files, kind, use):
    """A truncated, foreign or missing checkpoint stops every use that it can be put to, naming file and reason."""
    file, work_dir = bad_files / f'{kind}.pt', tmp_path / 'work'
    calls = dict(
        load_from=lambda: tools.train('fcmae', work_dir, f'load_from={file}'),
        resume=lambda: tools.train('fcmae', work_dir, arguments=['--resume', str(file)]),
        init_cfg=lambda: tools.train('upernet', work_dir, f'model.backbone.init_cfg.checkpoint={file}'),
        test=lambda: tools.test('upernet', file, work_dir, arguments=['--out', str(work_dir / 'out.pkl')]),
    )
    foreign = 'no known ConvNeXt layout' if use == 'init_cfg' else 'of another model'
    reason = dict(truncated='truncated or damaged', foreign=foreign, missing='')[kind]
    named = () if (kind, use) == ('foreign', 'init_cfg') else (str(file),)
    refused(calls[use], work_dir, reason, *named)


def test_class_counts(tools, tmp_path):
    """num_classes against metainfo, and metainfo against the annotation file, are refused with both sides named."""
    counts = ['model.roi_head.bbox_head.num_classes=5', 'model.roi_head.mask_head.num_classes=5']
    refused(lambda: tools.train('mask-rcnn', tmp_path, *counts), tmp_path, 'num_classes=[5]', '6 classes')
    refused(
        lambda: tools.train('upernet', tmp_path, 'model.decode_head.num_classes=7'),
        tmp_path,
        'num_classes=[7, 10]',
        '10 classes',
    )
    names = 'train_dataloader.dataset.metainfo.classes=disc,square,triangle,star,ring,comet'
    refused(lambda: tools.train('mask-rcnn', tmp_path, names), tmp_path, "has no ['comet']", "'cross'", 'metainfo')
    untold = 'train_dataloader.dataset.metainfo=None'  # COCO's own eighty
    refused(lambda: tools.train('mask-rcnn', tmp_path, untold), tmp_path, 'instances_train2017.json has no', 'person')


def test_annotation_file_with_fewer_classes(tools, tmp_path, data):
    """An annotation file that is empty or lacks a class is refused; mmdet would shift the labels without a word."""
    source = data / 'coco' / 'annotations' / 'instances_train2017.json'
    content = json.loads(source.read_text())
    content['categories'] = [one for one in content['categories'] if one['name'] != 'disc']
    (tmp_path / 'fewer.json').write_text(json.dumps(content))
    option = f'train_dataloader.dataset.ann_file={tmp_path / "fewer.json"}'
    refused(lambda: tools.train('mask-rcnn', tmp_path, option), tmp_path, 'fewer.json', "has no ['disc']")
    (tmp_path / 'fewer.json').write_text('')
    refused(lambda: tools.train('mask-rcnn', tmp_path, option), tmp_path, 'fewer.json is empty')


@pytest.mark.slow
def test_command_line_ends_with_one_line(tools, tmp_path, monkeypatch):
    """The real command prints the line last, without a traceback, and a bug of the user's own hook still shows one."""
    run = tools.command(
        'train', 'fcmae', tmp_path, 'train_dataloader.dataset.pipeline.1.scale=72', 'train_dataloader.num_workers=1'
    )
    assert run.returncode == 1 and 'Traceback' not in run.stderr, run.stderr
    assert run.stderr.splitlines()[-1].startswith('error: the pipeline gives images of 72x72')
    (tmp_path / 'own_hook.py').write_text(
        'import mmconvnextv2.pretrain\nfrom mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\nclass OwnHook(Hook):\n'
        '    def before_train(self, runner):\n        return 1 + "one"\n'
    )
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')])))
    (tmp_path / 'own.py').write_text(
        f"_base_ = '{tools.configs['fcmae']}'\n"
        "custom_imports = dict(imports=['own_hook'], allow_failed_imports=False)\n"
    )
    monkeypatch.setitem(tools.configs, 'fcmae', str(tmp_path / 'own.py'))
    broken = tools.command('train', 'fcmae', tmp_path, 'default_hooks.own.type=OwnHook')
    assert broken.returncode == 1 and 'Traceback' in broken.stderr and 'TypeError' in broken.stderr
