"""What a data set and its config disagree about is said in one line before training, and what agrees is let through."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

from mmconvnextv2.commands.data_checks import check_data
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.test import apply_tta
from mmconvnextv2.commands.train import parse_train_args, train
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded
from mmconvnextv2.utils.config import import_scope, load_config, read_config, reads_annotations, settle_data

NAMES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('drawn') / 'data'
    make_embedded(str(root), EmbeddedSpec(unlabelled=1, train=4, val=4, size=64))
    return root


@pytest.fixture
def data(drawn, tmp_path):
    """A copy of the rendered data whose files a test may change."""

    shutil.copytree(drawn, tmp_path / 'data')
    return tmp_path / 'data'


def checked(recipe, options, splits=('train', 'val')):
    cfg = read_config(f'configs/{recipe}.py')
    cfg.merge_from_dict(options)
    settle_data(cfg)
    import_scope(cfg)
    check_data(cfg, splits)
    return cfg


def segmentor(data, **options):
    places = {f'{split}_dataloader.dataset.data_root': str(data / 'ade') for split in ('train', 'val', 'test')}
    return checked('quickstart/upernet', {**places, 'model.backbone.init_cfg': None, **options})


def detector(data, **options):
    places = {f'{split}_dataloader.dataset.data_root': f'{data}/coco/' for split in ('train', 'val', 'test')}
    places['val_evaluator.ann_file'] = f'{data}/coco/annotations/instances_val2017.json'
    return checked('quickstart/mask-rcnn', {**places, **options})


def classifier(root, classes, **options):
    places = {
        f'{split}_dataloader.dataset.{key}': value
        for split in ('train', 'val')
        for key, value in (('data_root', str(root)), ('metainfo.classes', classes))
    }
    return checked(
        'classification/convnextv2-a_fcmae-ft_in1k-224',
        {**places, 'model.head.num_classes': 3, 'data_preprocessor.num_classes': 3, 'val_evaluator.topk': 1, **options},
    )


def make_folders(root, names=('a', 'b', 'c'), splits=('train', 'val')):
    for split in splits:
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new('RGB', (40, 40)).save(root / split / name / f'{number}.png')
    return root


def test_sound_data_pass(data, tmp_path):
    """The quickstart's data, and folders named like the classes, are let through with nothing changed."""
    assert segmentor(data).train_dataloader.dataset.metainfo.classes[4:] == NAMES
    assert detector(data).train_dataloader.dataset.metainfo.classes == NAMES
    assert classifier(make_folders(tmp_path / 'f'), ('a', 'b', 'c')).val_dataloader.dataset.metainfo.classes == (
        'a',
        'b',
        'c',
    )


@pytest.mark.parametrize('classes', [('c', 'a', 'b'), ['b', 'c', 'a']])
def test_folders_keep_their_names(tmp_path, classes):
    """Whatever the order of the names, each image's label means its own folder's name."""
    cfg = classifier(make_folders(tmp_path), classes)
    for split in ('train', 'val'):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            data = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        for index in range(len(data)):
            info = data.get_data_info(index)
            assert f'/{data.metainfo["classes"][info["gt_label"]]}/' in info['img_path']


@pytest.mark.parametrize(
    'change, options, said',
    [
        (lambda root: (root / 'train' / '.ipynb_checkpoints').mkdir(), {}, "hidden folder '.ipynb_checkpoints'"),
        (lambda root: make_folders(root, ['d'], ['train']), {}, r"train has the folders \['a', 'b', 'c', 'd'\]"),
        (lambda root: (root / 'val' / 'b').rename(root / 'val' / 'x'), {}, r"val has the folders .* none for \['b'\]"),
        (lambda root: None, {'val_evaluator.topk': (1, 5)}, r'val_evaluator.topk=\(1, 5\): there are 3 classes'),
    ],
)
def test_folders_that_do_not_fit(tmp_path, change, options, said):
    """A hidden folder, one too many, one of another name and a top-5 of three classes are named."""
    change(make_folders(tmp_path))
    with pytest.raises(ValueError, match=said):
        classifier(tmp_path, ('a', 'b', 'c'), **options)


def test_other_names_in_both_splits(tmp_path):
    """Folders that have other names than the classes are taken in their order, if both splits have the same ones."""
    cfg = classifier(make_folders(tmp_path), ('one', 'two', 'three'))
    assert cfg.train_dataloader.dataset.metainfo.classes == ('one', 'two', 'three')
    (tmp_path / 'val' / 'a').rename(tmp_path / 'val' / 'z')
    with pytest.raises(ValueError, match=r"different class folders, \['a', 'z'\]"):
        classifier(tmp_path, ('one', 'two', 'three'))


@pytest.mark.parametrize(
    'evaluator, said',
    [
        ('coco/annotations/instances_train2017.json', 'lists other images than .*instances_val2017.json'),
        ('coco/annotations/nowhere.json', 'nowhere.json.* does not exist'),
    ],
)
def test_file_of_the_evaluator(data, evaluator, said):
    """An evaluator's file of another split, or of none, is named before training; a copy of the right one is not."""
    path = data / 'coco/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    for one in content['images']:
        one['file_name'] = f'other_{one["file_name"]}'
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'val_evaluator.ann_file=.*{said}'):
        detector(data, **{'val_evaluator.ann_file': str(data / evaluator)})
    copy = data / 'copy.json'
    copy.write_bytes((data / 'coco/annotations/instances_val2017.json').read_bytes())
    detector(data, **{'val_evaluator.ann_file': str(copy)})


def test_order_of_a_plain_coco_dataset(data):
    """mmdet's own data set, which goes by order, is refused where the orders differ, and used where they do not."""
    plain = {'train_dataloader.dataset.type': 'CocoDataset', 'val_dataloader.dataset.type': 'CocoDataset'}
    detector(data, **plain)
    turned = {f'{split}_dataloader.dataset.metainfo.classes': NAMES[::-1] for split in ('train', 'val')}
    with pytest.raises(ValueError, match="type='CheckedCocoDataset', which matches names"):
        detector(data, **plain, **turned)
    detector(data, **turned)


def test_files_are_read_once_and_on_demand(data, monkeypatch):
    """Only the first of several processes reads annotations and labels, and none with ``--skip-data-checks``."""
    places = [f'{split}_dataloader.dataset.data_root={data}/ade' for split in ('train', 'val')]
    (data / 'ade/annotations/training').rename(data / 'labels')
    (data / 'ade/annotations/training').mkdir()
    for path in (data / 'labels').iterdir():
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(data / 'ade/annotations/training' / path.name)
    arguments = [
        'configs/quickstart/upernet.py',
        '--cfg-options',
        *places,
        'optim_wrapper.optimizer.lr=-1',
        'model.backbone.init_cfg=None',
        '--work-dir',
        str(data / 'work'),
    ]
    with pytest.raises(ValueError, match='nothing can be learnt'):
        train(parse_train_args(arguments))
    with pytest.raises(ValueError, match='learning rate'):  # found later
        train(parse_train_args([*arguments, '--skip-data-checks']))
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(ValueError, match='learning rate'):
        train(parse_train_args(arguments))


def test_one_class_as_text(data):
    """One class by name alone is one class, not its letters."""
    with pytest.raises(ValueError, match=r'num_classes=\[6\] in the model, but 1 classes'):
        detector(data, **{'train_dataloader.dataset.metainfo.classes': 'disc'})


@pytest.mark.parametrize(
    'change, said',
    [
        (
            lambda labels: np.where(labels > 4, 255, 0).astype(np.uint8),
            'label files contain only plain|contain only ignored pixels',
        ),
        (lambda labels: labels * 0 + 1, 'contain only plain, and 0% of pixels are 255'),
        (lambda labels: labels.astype(np.uint16) * 256, 'has labels .* expected 0 to 10'),
        (lambda labels: labels[::2, ::2], r'\(32, 32\) rows and columns, its image .* has \(64, 64\)'),
        (lambda labels: np.stack([labels] * 3, 2), 'expected one channel'),
        (lambda labels: labels.astype(np.float32) + 0.5, 'values of type float32'),
    ],
)
@pytest.mark.parametrize('split', ['training', 'validation'])
def test_labels_that_mean_nothing(data, change, said, split):
    """Masks of 0 and 255, one class alone, 16 bits in steps of 256, another size, colours and fractions are named in
    the training and in the validation labels alike."""
    for path in (data / 'ade/annotations' / split).glob('*.png'):
        labels = change(np.asarray(Image.open(path)))
        if labels.dtype == np.float32:
            path.unlink()
            Image.fromarray(labels).save(path, format='TIFF')
        else:
            Image.fromarray(labels).save(path)
    with pytest.raises(ValueError, match=said):
        segmentor(data)


def test_capitals_in_endings(data):
    """Images that end in capitals would be left out, and are named; a list of files decides by itself."""
    for number, path in enumerate(sorted((data / 'ade/images/training').glob('*.png'))):
        if number % 2:
            path.rename(path.with_suffix('.PNG'))
    with pytest.raises(ValueError, match='2 of 4 images in .*training have another suffix'):
        segmentor(data)


def test_settings_that_learn_nothing(data):
    """A single class of a softmax and a batch of one before batch normalisation are refused with their remedies, which
    work."""
    one = {'model.decode_head.num_classes': 1, 'model.auxiliary_head.num_classes': 1}
    one |= {f'{split}_dataloader.dataset.metainfo.classes': ('crack',) for split in ('train', 'val')}
    with pytest.raises(ValueError, match='num_classes=1: the only class is always correct'):
        segmentor(data, **one)
    with pytest.raises(ValueError, match='batch_size=1: UPerHead pools each image to one value'):
        segmentor(data, **{'train_dataloader.batch_size': 1})
    segmentor(data, **{'train_dataloader.batch_size': 1, 'model.decode_head.norm_cfg': dict(type='GN', num_groups=32)})


@pytest.mark.slow
def test_remedies_train(data, tmp_path):
    """A batch of one with group normalisation and no workers trains; more images in a batch than there are is
    said."""

    def arguments(*options):
        places = [f'{split}_dataloader.dataset.data_root={data}/ade' for split in ('train', 'val', 'test')]
        places += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val')]
        return parse_train_args(
            [
                'configs/quickstart/upernet.py',
                '--work-dir',
                str(tmp_path / 'run'),
                '--cfg-options',
                *places,
                'train_cfg.max_iters=2',
                'train_cfg.val_interval=2',
                'model.backbone.init_cfg=None',
                'default_hooks.checkpoint.interval=2',
                *options,
            ]
        )

    train(
        arguments(
            'train_dataloader.batch_size=1',
            'model.decode_head.norm_cfg.type=GN',
            'model.decode_head.norm_cfg.num_groups=32',
        )
    )
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    with pytest.raises(ValueError, match='4 images do not fill a batch of 64'):
        train(
            arguments(
                'train_dataloader.batch_size=64',
                'train_dataloader.drop_last=True',
                'train_dataloader.sampler.type=DefaultSampler',
            )
        )


def test_sizes_in_a_validation_batch():
    """mmseg's preprocessor takes no batch of several sizes in evaluation: one line names the keys to set."""
    preprocessor = MODELS.build(dict(type='mmseg.SegDataPreProcessor'))
    images = [torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)]
    with pytest.raises(SystemExit, match='^error: .*set batch_size=1 for both, or pad the images with'):
        run_tool(lambda args: preprocessor(dict(inputs=images, data_samples=None)), Namespace(traceback=False))


def test_settling_leaves_files_of_names_alone(tmp_path):
    """``metainfo.classes`` may be a file of names, as mmengine reads it."""
    (tmp_path / 'names.txt').write_text('a\nb\n')
    cfg = Config(
        dict(
            train_dataloader=dict(
                num_workers=2, persistent_workers=True, dataset=dict(metainfo=dict(classes=str(tmp_path / 'names.txt')))
            )
        )
    )
    settle_data(cfg)
    assert cfg.train_dataloader.dataset.metainfo.classes == str(tmp_path / 'names.txt')
    assert cfg.train_dataloader.persistent_workers


def test_paths_with_commas(tmp_path):
    """A path with a comma is a path in ``--cfg-options``, a list stays a list."""
    folder = tmp_path / 'a,b'
    folder.mkdir()
    args = parse_train_args(
        [
            'configs/quickstart/upernet.py',
            '--cfg-options',
            f'data_root={folder}',
            f'train_dataloader.dataset.data_root={folder}',
            'custom=x,y',
        ]
    )
    cfg = load_config(args.config, args.cfg_options)
    assert cfg.data_root == cfg.train_dataloader.dataset.data_root == str(folder) and cfg.custom == ['x', 'y']


@pytest.mark.parametrize('recipe', ['custom/upernet_five-channels', 'custom/upernet_own-classes', 'quickstart/upernet'])
def test_augmented_tests_read_as_tests_do(recipe):
    """``--tta`` reads images and labels by the steps of the test pipeline, whatever its base had."""
    cfg = read_config(f'configs/{recipe}.py')
    steps = cfg.test_dataloader.dataset.pipeline
    apply_tta(cfg)
    pipeline = cfg.test_dataloader.dataset.pipeline
    assert pipeline[0] == steps[0]
    (labels,) = [branch[0] for branch in pipeline[1].transforms if reads_annotations(branch[0])]
    assert labels in steps


def test_labels_behind_a_wrapper(data):
    """A repeated and a concatenated data set are looked at through their wrappers; one part may hold a single class."""
    cfg = segmentor(data)
    plain = cfg.train_dataloader.dataset
    for path in (data / 'ade/annotations/training').glob('*.png'):
        Image.fromarray(np.full((64, 64), 1, np.uint8)).save(path)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=plain)
    with pytest.raises(ValueError, match='train: the first 4 label files contain only plain'):
        check_data(cfg, ('train',))
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[plain, cfg.val_dataloader.dataset])
    check_data(cfg, ('train',))


def test_hidden_folders_of_unlabelled_images(tmp_path):
    """Folders that are not classes, as in pretraining, may be hidden."""
    (tmp_path / '.thumbnails').mkdir()
    checked('quickstart/fcmae', {'train_dataloader.dataset.data_root': str(tmp_path)}, ('train',))


@pytest.mark.parametrize('encoding', ['utf-8', 'cp1252', 'utf-8-sig', 'utf-16'])
def test_names_in_other_encodings(data, encoding):
    """Names beyond ASCII are compared as they are meant, in the annotation file and in that of the evaluator."""
    for split in ('train', 'val'):
        path = data / f'coco/annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        content['categories'][0]['name'] = 'M\u00fchle'
        path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    shutil.copy(data / 'coco/annotations/instances_val2017.json', data / 'copy.json')
    names = ('M\u00fchle', *NAMES[1:])
    options = {f'{split}_dataloader.dataset.metainfo.classes': names for split in ('train', 'val')}
    detector(data, **options, **{'val_evaluator.ann_file': str(data / 'copy.json')})
    wrong = {key: ('Muhle', *NAMES[1:]) for key in options}
    if encoding != 'utf-16':  # whose names are compared when the file is parsed
        with pytest.raises(ValueError, match='has no .*Muhle'):
            detector(data, **wrong)
