"""Odd annotations of detection and segmentation: each is used, left out and counted, or refused with its place."""

import json
import subprocess
import sys
from argparse import Namespace

import mmdet.utils
import mmseg.utils
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.datasets.coco import CheckedCocoDataset, CheckedCocoMetric
from mmconvnextv2.datasets.segmentation import LoadCheckedLabels
from mmconvnextv2.engine.pipelines import name_files

mmdet.utils.register_all_modules(init_default_scope=False)
mmseg.utils.register_all_modules(init_default_scope=False)
SQUARE = [[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]]


def annotation(number, **changes):
    item = dict(id=number, image_id=1, category_id=7, bbox=[4, 4, 16, 16], area=256, iscrowd=0, segmentation=SQUARE)
    return {key: value for key, value in {**item, **changes}.items() if value != 'missing'}


def content(*annotations):
    return dict(
        categories=[dict(id=7, name='cat'), dict(id=90, name='dog')],
        annotations=list(annotations),
        images=[dict(id=one, file_name=f'{one}.png', height=32, width=48) for one in (1, 2)],
    )


def load(folder, text, **options):
    (folder / 'a.json').write_text(text if isinstance(text, str) else json.dumps(text))
    for number in (1, 2):
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(folder / f'{number}.png')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='PackDetInputs', meta_keys=('img_id',)),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        return CheckedCocoDataset(
            ann_file=str(folder / 'a.json'),
            data_prefix=dict(img=str(folder)),
            pipeline=pipeline,
            metainfo=dict(classes=('cat', 'dog')),
            filter_cfg=dict(filter_empty_gt=True, min_size=1),
            **options,
        )


RLE = dict(size=[32, 48], counts=[132, 16, 16, 16, 32 * 48 - 180])


@pytest.mark.parametrize(
    'changes, num_used, num_ignored',
    [
        (dict(), 2, 0),
        (dict(segmentation=RLE), 2, 0),
        (dict(category_id=90), 2, 0),
        (dict(iscrowd=1), 1, 1),
        (dict(bbox=[30, 20, 40, 40]), 2, 0),
        (dict(bbox=[100, 4, 9, 9]), 1, 0),
        (dict(bbox=[-30, 4, 20, 9]), 1, 0),
        (dict(bbox=[4, 4, 0.5, 9]), 1, 0),
        (dict(bbox=[4, 4, -3, 9]), 1, 0),
        (dict(area=0), 1, 0),
        (dict(segmentation=[]), 1, 0),
        (dict(segmentation='missing'), 1, 0),
        (dict(segmentation=[[1.0, 2.0]]), 1, 1),
        (dict(iscrowd='missing'), 2, 0),
        (dict(category_id=8), 1, 0),
        (dict(image_id=5), 1, 0),
    ],
    ids=[
        'good',
        'RLE',
        'gap in ids',
        'crowd',
        'partly outside',
        'right of it',
        'left of it',
        'thin',
        'negative',
        'no area',
        'empty polygons',
        'no mask',
        'two numbers',
        'no iscrowd',
        'unknown class',
        'no such image',
    ],
)
def test_odd_instances(tmp_path, changes, num_used, num_ignored):
    """Beside a good instance, an odd one is learnt from, ignored or left out as the table says, and the rest stays."""
    dataset = load(tmp_path, content(annotation(1), annotation(2, **changes)))
    sample = dataset[0]['data_samples']
    assert len(sample.gt_instances) == num_used and len(sample.ignored_instances) == num_ignored
    assert np.array_equal(sample.gt_instances.masks.masks[0].nonzero()[0][[0, -1]], [4, 19])
    if num_used == 2 and 'category_id' in changes:
        assert sample.gt_instances.labels.tolist() == [0, 1]
    assert len(pseudo_collate([dataset[0]])['inputs']) == 1


def test_images_without_annotations(tmp_path):
    """An image without annotations is left out, one with crowds alone stays; a file that leaves none, or nothing but
    crowds, is refused."""
    assert len(load(tmp_path, content(annotation(1)))) == 1
    dataset = load(tmp_path, content(annotation(1, iscrowd=1), annotation(2, image_id=2)))
    assert len(dataset) == 2 and len(dataset[0]['data_samples'].ignored_instances) == 1
    with pytest.raises(ValueError, match='a.json: all 2 objects have iscrowd=1'):
        load(tmp_path, content(annotation(1, iscrowd=1), annotation(2, iscrowd=1)))
    with pytest.raises(ValueError, match=r"a.json: none of its 2 images has an .* classes \('cat', 'dog'"):
        load(tmp_path, content())
    assert len(load(tmp_path, content(), test_mode=True)) == 2


@pytest.mark.parametrize(
    'part, changes, said',
    [
        *(
            ('annotations', {key: 'missing'}, rf"annotations\[0\] .*lacks \['{key}'\]")
            for key in ('image_id', 'category_id', 'bbox', 'area')
        ),
        ('annotations', dict(bbox=[1, 2, 3]), r'annotations\[0\] \(id 1\) has bbox=\[1, 2, 3\]'),
        ('annotations', dict(bbox='none'), "has bbox='none'"),
        *(
            ('images', {key: 'missing'}, rf"images\[0\] .*lacks \['{key}'\]")
            for key in ('id', 'file_name', 'height', 'width')
        ),
        *(('categories', {key: 'missing'}, rf"categories\[0\] .*lacks \['{key}'\]") for key in ('id', 'name')),
    ],
)
def test_missing_fields_are_named(tmp_path, part, changes, said):
    """A missing or misshapen field is refused with file, place, id and field, where mmdet shows a KeyError."""
    whole = content(annotation(1))
    item = {**whole[part][0], **changes}
    whole[part][0] = {key: value for key, value in item.items() if value != 'missing'}
    with pytest.raises(ValueError, match=f'a.json: .*{said}'):
        load(tmp_path, whole)


@pytest.mark.parametrize(
    'text, said',
    [
        ('{"images": [', 'not valid JSON .*truncated'),
        ('[]', 'found a list'),
        ('{}', "no list 'categories'"),
        (json.dumps({**content(), 'annotations': None}), "no list 'annotations'"),
        (json.dumps(content(annotation(1), annotation(1))), '2 annotations have id 1'),
    ],
)
def test_files_that_are_no_coco_are_refused(tmp_path, text, said):
    """A cut file, another kind of JSON and ids that occur twice are refused with the file's name."""
    with pytest.raises(ValueError, match=f'a.json: .*{said}'):
        load(tmp_path, text)


def evaluate(folder, whole, classes, found, metric=('bbox', 'segm')):
    """Evaluate what a detector finds, (class name, image, box), on a file."""
    (folder / 'val.json').write_bytes(whole if isinstance(whole, bytes) else json.dumps(whole).encode())
    evaluator = CheckedCocoMetric(str(folder / 'val.json'), metric=list(metric))
    evaluator.dataset_meta = dict(classes=classes)
    for image in (1, 2):
        here = [(name, box) for name, found_in, box in found if found_in == image]
        masks = torch.zeros(len(here), 32, 48, dtype=torch.bool)
        for mask, (_, box) in zip(masks, here):
            mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = True
        evaluator.process(
            {},
            [
                dict(
                    img_id=image,
                    ori_shape=(32, 48),
                    pred_instances=dict(
                        bboxes=torch.tensor([box for _, box in here]).reshape(-1, 4),
                        scores=torch.ones(len(here)),
                        masks=masks,
                        labels=torch.tensor([classes.index(name) for name, _ in here], dtype=torch.long),
                    ),
                )
            ],
        )
    metrics = evaluator.evaluate(2)
    return metrics['coco/bbox_mAP'], metrics['coco/segm_mAP']


BOX, SMALL = [4.0, 4.0, 20.0, 20.0], [30.0, 10.0, 40.0, 20.0]
OTHER = dict(
    bbox=[30, 10, 10, 10], area=100, category_id=90, segmentation=[[30.0, 10.0, 40.0, 10.0, 40.0, 20.0, 30.0, 20.0]]
)
FOUND = [('cat', 1, BOX), ('dog', 2, SMALL)]


@pytest.mark.parametrize('classes', [('cat', 'dog'), ('dog', 'cat'), ('bird', 'dog', 'cat')])
@pytest.mark.parametrize('order', [1, -1])
@pytest.mark.parametrize('change', ['plain', 'root', 'from 0', 'no iscrowd', 'cp1252', 'utf-8-sig', 'utf-16'])
def test_classes_go_by_name(tmp_path, classes, order, change):
    """Whatever the order of names in the config and of categories in the file, with a root category of a class's name,
    object ids from 0, without iscrowd, and in other encodings, labels stand for their names in the data and a perfect
    detector has AP 1; one that takes cats for dogs has 0."""
    whole = content(annotation(1), annotation(2, image_id=2, **OTHER))
    whole['categories'] = whole['categories'][::order]
    if change == 'root':
        whole['categories'].insert(0, dict(id=0, name='dog', supercategory='none'))
    for number, one in enumerate(whole['annotations']):
        one['id'] = number if change == 'from 0' else number + 1
        if change == 'no iscrowd':
            del one['iscrowd']
    text = json.dumps({**whole, 'info': 'M\u00fcller'}, ensure_ascii=False)
    whole = text.encode(change) if change in ('cp1252', 'utf-8-sig', 'utf-16') else text.encode()
    (tmp_path / 'a.json').write_bytes(whole)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = CheckedCocoDataset(
            ann_file=str(tmp_path / 'a.json'), metainfo=dict(classes=classes), pipeline=[], data_prefix=dict(img='')
        )
    labels = [instance['bbox_label'] for index in (0, 1) for instance in dataset.get_data_info(index)['instances']]
    assert [classes[label] for label in labels] == ['cat', 'dog']
    assert evaluate(tmp_path, whole, classes, FOUND) == (1, 1)
    assert evaluate(tmp_path, whole, classes, [('dog', 1, BOX), ('cat', 2, SMALL)]) == (0, 0)


@pytest.mark.parametrize('segmentation', [[], None, 'missing'])
def test_objects_without_masks_are_evaluated(tmp_path, segmentation):
    """An object without a mask in the validation file is not a KeyError: its box counts for both metrics, and it is
    left out of what the data set loads."""
    whole = content(annotation(1), annotation(2, image_id=2, **{**OTHER, 'segmentation': segmentation}))
    assert evaluate(tmp_path, whole, ('cat', 'dog'), FOUND) == (1, 1)
    assert len(load(tmp_path, whole, test_mode=True)[1]['data_samples'].gt_instances) == 0


@pytest.mark.parametrize(
    'whole, said',
    [
        (content(annotation(1, iscrowd=1)), 'val.json: all 1 objects have iscrowd=1'),
        (dict(content(annotation(1)), images=[dict(id=1, file_name='a', height=9, width=9)] * 2), '2 images have id 1'),
        (dict(content(annotation(1)), images=[dict(id=3, file_name='a', height=9, width=9)]), 'has no image with id 1'),
        (
            dict(
                content(annotation(1), annotation(2, category_id=90)),
                categories=[dict(id=7, name='cat'), dict(id=90, name='cat')],
            ),
            r'categories \[7, 90\] are all named .cat. and all have objects',
        ),
        (b'{"images": [', 'not valid JSON'),
    ],
    ids=['crowds', 'one id', 'another split', 'one name', 'cut'],
)
def test_evaluators_refuse(tmp_path, whole, said):
    """A validation file whose numbers would mean nothing is refused with its name and the remedy."""
    with pytest.raises(ValueError, match=said):
        evaluate(tmp_path, whole, ('cat', 'dog'), FOUND)


@pytest.mark.parametrize('content_of', (b'text', b'', None), ids=('text', 'no bytes', 'missing'))
@pytest.mark.parametrize('workers', (0, 1))
def test_unreadable_images_of_detection_are_one_line(tmp_path, content_of, workers):
    """A damaged, empty or missing image ends the command with one line that names it, from a data worker too."""
    dataset = load(tmp_path, content(annotation(1)))
    name_files(dataset)
    (tmp_path / '1.png').unlink()
    if content_of is not None:
        (tmp_path / '1.png').write_bytes(content_of)
    said = f'{tmp_path}/1.png' + (': No such file' if content_of is None else ' cannot be read as an image')
    loader = DataLoader(dataset, num_workers=workers, collate_fn=pseudo_collate)
    with pytest.raises(SystemExit, match=f'^error: {said}'):
        run_tool(lambda args: list(loader), Namespace(traceback=False))


class Halve:
    """A transform of the user's own, with a bug."""

    def __call__(self, data):
        return data['no such key']


@pytest.mark.parametrize(
    'step, said',
    [(dict(type='mmdet.Resize', scale=(0, 0)), 'Resize, step 2 of its pipeline, failed with'), (Halve(), None)],
    ids=('mmdet', 'own'),
)
@pytest.mark.parametrize('workers', (0, 1))
def test_failing_steps_are_named(tmp_path, step, said, workers):
    """A step of OpenMMLab's that fails ends with image, step and reason in one line; a bug of the user's own step keeps
    its traceback."""
    dataset = load(tmp_path, content(annotation(1)))
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset.pipeline = Compose([*dataset.pipeline.transforms[:2], step])
    name_files(dataset)
    loader = DataLoader(dataset, num_workers=workers, collate_fn=pseudo_collate)
    with pytest.raises(SystemExit if said else KeyError, match=said and f'^error: {tmp_path}/1.png: {said}'):
        run_tool(lambda args: list(loader), Namespace(traceback=False))


def labels(folder, pixels, **options):
    Image.fromarray(pixels).save(folder / 'labels.png')
    loader = LoadCheckedLabels(num_classes=10, **options)
    results = dict(
        seg_map_path=str(folder / 'labels.png'),
        img_path='image.jpg',
        img_shape=(4, 6),
        seg_fields=[],
        reduce_zero_label=options.get('reduce_zero_label', False),
    )
    return loader.transform(results)['gt_seg_map']


@pytest.mark.parametrize('reduces', (True, False))
def test_labels_are_those_of_mmseg(tmp_path, reduces):
    """Good labels come bit for bit as mmseg reads them, 0 and 255 included."""
    from mmseg.datasets.transforms import LoadAnnotations

    pixels = np.random.default_rng(0).integers(0, 10, (4, 6)).astype(np.uint8)
    pixels[0, :3] = (0, 255, 9 + reduces)
    expected = dict(seg_map_path=str(tmp_path / 'labels.png'), seg_fields=[], reduce_zero_label=reduces)
    found = labels(tmp_path, pixels, reduce_zero_label=reduces)
    assert np.array_equal(found, LoadAnnotations(reduce_zero_label=reduces).transform(expected)['gt_seg_map'])


@pytest.mark.parametrize(
    'pixels, said',
    [
        (np.full((4, 6), 11, np.uint8), r'labels \[11\] at 24 pixels: expected 0 to 9'),
        (np.full((4, 6), 300, np.uint16), r'labels \[300\] at 24 pixels'),
        (np.zeros((6, 4), np.uint8), r'\(6, 4\) rows and columns, its image image.jpg has \(4, 6\)'),
        (np.zeros((4, 6, 3), np.uint8), r'shape \(4, 6, 3\): expected one channel'),
    ],
    ids=['out of range', '16 bits', 'turned', 'colour'],
)
def test_bad_labels_are_refused(tmp_path, pixels, said):
    """Labels out of range, above 255, of another size or in colour are refused with the file and what was found."""
    with pytest.raises(ValueError, match=f'labels.png has {said}'):
        labels(tmp_path, pixels)


@pytest.mark.parametrize(
    'orientation, size, said',
    [
        (1, (48, 32), None),
        (6, (32, 48), None),
        (6, (48, 32), 'has 32 x 48 pixels, rotated according to its EXIF'),
        (1, (60, 40), 'has 60 x 40 pixels, but the file says 48 x 32'),
    ],
)
def test_sizes_of_other_images_are_refused(tmp_path, orientation, size, said):
    """Sizes in the file that belong to the image before its EXIF rotation, or to another one, are named; those after
    rotation are right."""
    load(tmp_path, content(annotation(1)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', size).save(tmp_path / '1.jpg', exif=exif)
    whole = content(annotation(1))
    whole['images'][0]['file_name'] = '1.jpg'
    if said is None:
        assert load(tmp_path, whole)[0]['inputs'].shape == (3, 32, 48)
    else:
        with pytest.raises(ValueError, match=f'a.json: .*1.jpg {said}'):
            load(tmp_path, whole)


OPTIMIZED = """
import sys
from argparse import Namespace
from mmengine.dataset import BaseDataset
from torch.utils.data import DataLoader
import mmcv.transforms
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.engine.pipelines import name_files
class Images(BaseDataset):
    def load_data_list(self):
        return [dict(img_path=sys.argv[1])]
dataset = Images(pipeline=[dict(type='LoadImageFromFile')])
name_files(dataset)
run_tool(lambda args: list(DataLoader(dataset, num_workers=int(sys.argv[2]))), Namespace(traceback=False))
"""


@pytest.mark.parametrize('workers', ('0', '1'))
def test_unreadable_images_without_assertions(tmp_path, workers):
    """Where Python runs without assertions, on which mmcv leans, an unreadable image is the same line."""
    (tmp_path / 'bad.png').write_bytes(b'junk')
    run = subprocess.run(
        [sys.executable, '-O', '-c', OPTIMIZED, str(tmp_path / 'bad.png'), workers], capture_output=True, text=True
    )
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert 'bad.png cannot be read as an image' in run.stderr.strip().splitlines()[-1]
