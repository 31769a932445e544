"""``tools/prepare.py``: every format of the same labels gives the same training set, and mistakes are named."""

import json
from itertools import product

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from mmconvnextv2.commands.prepare import parse_args, prepare, split_images
from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.datasets.formats import LabelledImage, read_labels
from mmconvnextv2.utils.config import load_config

WIDTH, HEIGHT = 60, 40
CLASSES = ('cat', 'dog')
# Class and outline of the objects of each of six images
OBJECTS = [
    [('cat', [4, 4, 24, 4, 24, 20, 4, 20]), ('dog', [30, 10, 50, 10, 40, 30])],
    [('dog', [2, 2, 12, 2, 12, 30, 2, 30])],
    [],
    [('cat', [10, 10, 30, 10, 20, 35])],
    [('dog', [5, 5, 55, 5, 30, 38]), ('cat', [1, 1, 9, 1, 9, 9])],
    [('cat', [20, 4, 40, 4, 40, 24, 20, 24])],
]
NAMES = [f'photo {number}.png' for number in range(len(OBJECTS))]


def write_images(folder):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / name)


def points(outline):
    return [outline[index : index + 2] for index in range(0, len(outline), 2)]


def write_coco(root):
    write_images(root / 'images')
    images = [dict(id=7 + n, file_name=name, width=WIDTH, height=HEIGHT) for n, name in enumerate(NAMES)]
    annotations = [
        dict(
            id=1 + n, image_id=7 + image, category_id=CLASSES.index(name) + 3, segmentation=[outline], bbox=[0, 0, 1, 1]
        )
        for n, (image, name, outline) in enumerate((i, *one) for i, objects in enumerate(OBJECTS) for one in objects)
    ]
    categories = [dict(id=9, name='animals'), *(dict(id=3 + n, name=name) for n, name in enumerate(CLASSES))]
    (root / 'annotations').mkdir()
    path = root / 'annotations' / 'instances_default.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def write_yolo(root):
    write_images(root / 'images')
    (root / 'labels').mkdir()
    (root / 'data.yaml').write_text('names:\n  0: cat\n  1: dog\n')
    for name, objects in zip(NAMES, OBJECTS):
        lines = [
            ' '.join([str(CLASSES.index(kind)), *(f'{x / WIDTH:.6f} {y / HEIGHT:.6f}' for x, y in points(outline))])
            for kind, outline in objects
        ]
        (root / 'labels' / name).with_suffix('.txt').write_text('\n'.join(lines))
    return root


def write_labelme(root):
    write_images(root)
    for name, objects in zip(NAMES, OBJECTS):
        shapes = [dict(label=kind, points=points(outline), shape_type='polygon') for kind, outline in objects]
        content = dict(shapes=shapes, imagePath=name, imageHeight=HEIGHT, imageWidth=WIDTH, imageData=None)
        (root / name).with_suffix('.json').write_text(json.dumps(content))
    return root


def write_via(root):
    write_images(root)
    entries = {}
    for name, objects in zip(NAMES, OBJECTS):
        regions = [
            dict(
                shape_attributes=dict(name='polygon', all_points_x=outline[::2], all_points_y=outline[1::2]),
                region_attributes=dict(animal=kind),
            )
            for kind, outline in objects
        ]
        entries[f'{name}123'] = dict(filename=name, size=123, regions=regions, file_attributes={})
    (root / 'via.json').write_text(json.dumps(dict(_via_settings={}, _via_img_metadata=entries)))
    return root / 'via.json'


def write_label_studio(root):
    write_images(root)
    tasks = []
    for name, objects in zip(NAMES, OBJECTS):
        results = [
            dict(
                type='polygonlabels',
                original_width=WIDTH,
                original_height=HEIGHT,
                value=dict(
                    polygonlabels=[kind], points=[[x / WIDTH * 100, y / HEIGHT * 100] for x, y in points(outline)]
                ),
            )
            for kind, outline in objects
        ]
        tasks.append(dict(id=1, data=dict(image=f'/data/upload/1/{name}'), annotations=[dict(result=results)]))
    (root / 'project.json').write_text(json.dumps(tasks))
    return root / 'project.json'


WRITERS = [write_coco, write_yolo, write_labelme, write_via, write_label_studio]


def run(source, out, *options):
    run_tool(prepare, parse_args([str(source), '--out', str(out), *options]))


def masks_of(out):
    """Return each image's masks by class, as pycocotools draws them, whatever the split."""
    masks = {}
    for split in ('train', 'val'):
        coco = COCO(str(out / f'{split}.json'))
        names = {key: one['name'] for key, one in coco.cats.items()}
        for key, image in coco.imgs.items():
            assert (out / split / image['file_name']).is_file()
            found = coco.loadAnns(coco.getAnnIds([key]))
            masks[image['file_name']] = [(names[one['category_id']], coco.annToMask(one)) for one in found]
    return masks


@pytest.mark.parametrize('write', WRITERS, ids=lambda write: write.__name__[6:])
def test_formats_agree(tmp_path, write, capsys):
    """Every format gives the masks of the outlines, each class in both splits, and a config that reads them."""
    run(write(tmp_path / 'export'), tmp_path / 'own')
    said = capsys.readouterr().out
    assert '6 images, 5 for training and 1 for validation' in said
    found = masks_of(tmp_path / 'own')
    assert sorted(found) == NAMES
    for name, objects in zip(NAMES, OBJECTS):
        assert [kind for kind, _ in found[name]] == [kind for kind, _ in objects]
        for (_, mask), (_, outline) in zip(found[name], objects):
            x, y = np.array(outline[::2]), np.array(outline[1::2])
            area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
            assert abs(mask.sum() - area) <= 0.05 * area + 4 and mask[int(y.mean()), int(x.mean())]
    cfg = load_config(str(tmp_path / 'own' / 'config.py'))
    assert cfg.model.roi_head.bbox_head.num_classes == 2 and cfg.train_dataloader.dataset.metainfo.classes == CLASSES
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    content = json.loads((tmp_path / 'own' / 'train.json').read_text())
    assert len(dataset) == len({one['image_id'] for one in content['annotations']}) and dataset[0] is not None
    assert (tmp_path / 'own' / 'samples.html').stat().st_size > 2000


def test_boxes_are_said_to_be_boxes(tmp_path, capsys):
    """YOLO's boxes become rectangles of the right place, and the tool says that mask AP means nothing."""
    root = write_yolo(tmp_path / 'export')
    for name in NAMES:
        (root / 'labels' / name).with_suffix('.txt').write_text('1 0.5 0.5 0.2 0.5\n')
    run(root, tmp_path / 'own')
    assert '6 objects are boxes without an outline' in capsys.readouterr().out
    (box,) = [one['bbox'] for one in json.loads((tmp_path / 'own' / 'val.json').read_text())['annotations']]
    assert box == pytest.approx([0.4 * WIDTH, 0.25 * HEIGHT, 0.2 * WIDTH, 0.5 * HEIGHT])


def test_given_splits_are_kept(tmp_path):
    """Roboflow's folders train and valid stay what they are."""
    for split, chosen in (('train', slice(0, 4)), ('valid', slice(4, 6))):
        path = write_coco(tmp_path / split)
        content = json.loads(path.read_text())
        content['images'] = content['images'][chosen]
        kept = {one['id'] for one in content['images']}
        content['annotations'] = [one for one in content['annotations'] if one['image_id'] in kept]
        (tmp_path / 'export' / split).mkdir(parents=True)
        (tmp_path / 'export' / split / '_annotations.coco.json').write_text(json.dumps(content))
        for image in content['images']:
            source = tmp_path / split / 'images' / image['file_name']
            source.rename(tmp_path / 'export' / split / image['file_name'])
    run(tmp_path / 'export', tmp_path / 'own')
    names = [one['file_name'] for one in json.loads((tmp_path / 'own' / 'val.json').read_text())['images']]
    assert names == NAMES[4:]


@pytest.mark.parametrize('kind', ['indices', 'palette', 'colours'])
def test_label_pngs(tmp_path, kind):
    """Indices, palettes and CVAT's colours give one set of indices; what is no class is ignored."""
    labels = np.random.default_rng(1).integers(0, 2, (len(NAMES), HEIGHT, WIDTH)).astype(np.uint8)
    labels[:, :5] = 255
    folders = ('JPEGImages', 'SegmentationClass') if kind == 'colours' else ('images', 'masks')
    write_images(tmp_path / 'export' / folders[0])
    (tmp_path / 'export' / folders[1]).mkdir()
    colours = np.zeros((256, 3), np.uint8)
    colours[:2] = [(200, 10, 10), (10, 200, 10)]
    for name, map_of in zip(NAMES, labels):
        image = Image.fromarray(colours[map_of]) if kind == 'colours' else Image.fromarray(map_of)
        if kind == 'palette':
            image = Image.fromarray(map_of, 'P')
            image.putpalette(colours.flatten().tolist())
        image.save(tmp_path / 'export' / folders[1] / name)
    if kind == 'colours':
        (tmp_path / 'export' / 'labelmap.txt').write_text(
            '# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:200,10,10::\ndog:10,200,10::\n'
        )
    else:
        (tmp_path / 'export' / 'classes.txt').write_text('cat\ndog\n')
    run(tmp_path / 'export', tmp_path / 'own', '--task', 'segment')
    for name, expected in zip(NAMES, labels):
        (path,) = (tmp_path / 'own' / 'labels').rglob(name)
        assert np.array_equal(np.asarray(Image.open(path)), expected)
    cfg = load_config(str(tmp_path / 'own' / 'config.py'))
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 1 and dataset[0]['data_samples'].gt_sem_seg.shape == (HEIGHT, WIDTH)
    assert cfg.model.decode_head.num_classes == 2


def test_splits_show_each_class_on_both_sides():
    """For any seed each class of two images or more is in both parts, and the split is that of the seed."""
    names = [{'a'}, {'a', 'b'}, {'b'}, {'c'}, {'c'}, {'a'}, {'a'}, {'a'}, set(), {'a'}]
    images = [LabelledImage(str(number)) for number in range(len(names))]
    for seed, share in product(range(20), (0.3, 0.5)):
        parts = split_images(images, names, share, seed)
        assert len(parts[1]) == round(share * 10) and len(parts[0]) + len(parts[1]) == 10
        for part in parts:
            assert set().union(*(names[int(one.file)] for one in part)) == {'a', 'b', 'c'}
        again = split_images(images, names, share, seed)
        assert [one.file for one in again[1]] == [one.file for one in parts[1]]


def test_mistakes_end_in_one_line(tmp_path):
    """Unknown formats, missing images, foreign class numbers and folders that exist are named, and nothing is left."""
    (tmp_path / 'empty').mkdir()
    broken = write_coco(tmp_path / 'broken')
    (tmp_path / 'broken' / 'images' / NAMES[2]).unlink()
    foreign = write_yolo(tmp_path / 'foreign')
    (foreign / 'labels' / 'photo 1.txt').write_text('5 0.5 0.5 0.1 0.1')
    (tmp_path / 'there').mkdir()
    for source, out, said in (
        (tmp_path / 'nowhere', 'own', 'nowhere does not exist'),
        (tmp_path / 'empty', 'own', 'is in no known format: expected COCO json'),
        (broken, 'own', '1 of 6 images are not below .*, such as photo 2.png'),
        (foreign, 'own', 'photo 1.txt, line 1: class 5, but only 2 class names'),
        (broken, 'there', 'there exists'),
    ):
        with pytest.raises(SystemExit, match=f'^error: .*{said}'):
            run(source, tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['broken', 'empty', 'foreign', 'there']


def test_outlines_are_repaired(tmp_path, capsys):
    """Outlines beyond the image are clipped, objects without an area left out, and both are said."""
    path = write_coco(tmp_path / 'export')
    content = json.loads(path.read_text())
    content['annotations'][0]['segmentation'] = [[50, 30, 90, 30, 90, 60, 50, 60]]
    content['annotations'][1]['segmentation'] = [[5, 5, 5, 5, 5, 5]]
    path.write_text(json.dumps(content))
    run(path, tmp_path / 'own')
    said = capsys.readouterr().out
    assert 'photo 0.png: an outline of cat left the image and was clipped' in said
    assert 'photo 0.png: a dog of less than 1 pixel was left out' in said
    ((kind, mask),) = masks_of(tmp_path / 'own')['photo 0.png']
    assert kind == 'cat' and mask.sum() == 100
    assert len(read_labels(str(path)).images[0].shapes) == 2


def write_class_folders(root, images=7):
    """One folder per class; a name that occurs twice below one class, and a file that is not an image."""
    for label, name in enumerate(('dog', 'cat')):
        for number in range(images):
            place = root / name / ('more' if number == 6 else '')
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.full((HEIGHT, WIDTH, 3), 100 * label + number, np.uint8)
            Image.fromarray(pixels).save(place / f'{0 if number == 6 else number}.png')
    (root / 'dog' / 'broken.png').write_bytes(b'not an image')


@pytest.mark.parametrize('split', [False, True])
def test_class_folders(tmp_path, capsys, split):
    """Every image that can be read is in one split, in the folder of its class; a split that exists is kept; the
    config's data set finds them with labels in alphabetical order."""
    if split:
        write_class_folders(tmp_path / 'given' / 'train')
        write_class_folders(tmp_path / 'given' / 'valid', images=2)
    else:
        write_class_folders(tmp_path / 'given')
    run(tmp_path / 'given', tmp_path / 'mine', '--task', 'classify')
    assert 'broken.png cannot be read as an image' in capsys.readouterr().out
    cfg = load_config(str(tmp_path / 'mine' / 'config.py'))
    init_default_scope('mmpretrain')
    seen = {}
    for part in ('train', 'val'):
        dataset = DATASETS.build(dict(cfg[f'{part}_dataloader'].dataset, pipeline=[]))
        assert dataset.metainfo['classes'] == ('cat', 'dog') and len(dataset) > 0
        for index in range(len(dataset)):
            one = dataset[index]
            value = np.asarray(Image.open(one['img_path']))[0, 0, 0]
            assert one['gt_label'] == (0 if value >= 100 else 1)
            seen.setdefault(part, []).append(int(value))
    total = [number + base for number in range(7) for base in (0, 100)]
    if split:
        assert sorted(seen['train']) == sorted(total) and sorted(seen['val']) == [0, 1, 100, 101]
    else:
        assert sorted(seen['train'] + seen['val']) == sorted(total) and len(seen['val']) == 3


def test_many_images_lengthen_the_run(tmp_path):
    """The config of 32 images leaves the recipe's length, that of 1,000 asks for twelve passes over them."""
    for count, length in ((20, 400), (600, 12 * 900 / 16)):
        for name in ('cat', 'dog'):
            (tmp_path / f'{count}' / name).mkdir(parents=True)
            for number in range(count if name == 'cat' else count * 7 // 8):
                Image.new('RGB', (4, 4)).save(tmp_path / f'{count}' / name / f'{number}.png')
        run(tmp_path / f'{count}', tmp_path / f'mine{count}', '--task', 'classify', '--size', 'tiny')
        cfg = load_config(str(tmp_path / f'mine{count}' / 'config.py'))
        assert cfg.train_cfg.max_iters == length and cfg.model.backbone.arch == 'tiny'
