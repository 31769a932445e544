"""Writers of miniature data sets in the layouts of the public ones, in ``data/`` of a folder.

Each image has two coloured rectangles on grey. Writers return what they drew, so that tests know the ground truth.
"""

import json
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 128, 64
IGNORED = 255


class Drawn(NamedTuple):
    """An image with its objects.

    Args:
        pixels (np.ndarray): RGB, (H, W, 3).
        classes (tuple[int, int]): Class index of each rectangle.
        boxes (list[tuple]): Left, top, right, bottom in pixels; right and bottom are exclusive.
    """

    pixels: np.ndarray
    classes: tuple[int, int]
    boxes: list[tuple[int, int, int, int]]

    def mask(self, number):
        """Return the (H, W) bool mask of a rectangle."""
        left, top, right, bottom = self.boxes[number]
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top:bottom, left:right] = True
        return mask

    def label_map(self, ground, ids=lambda index: index):
        """Return the (H, W) uint8 labels: ``ground``, ``ids(class)`` in the rectangles, and 255 in the first row."""
        labels = np.full((HEIGHT, WIDTH), ground, np.uint8)
        for number, index in enumerate(self.classes):
            labels[self.mask(number)] = ids(index)
        labels[0] = IGNORED
        return labels


def draw(number, num_classes):
    """Draw an image: the classes are ``2 * number`` and the next one, modulo the number of classes."""
    generator = np.random.default_rng(number)
    classes = (2 * number % num_classes, (2 * number + 1) % num_classes)
    pixels = generator.integers(100, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes = []
    for half, index in enumerate(classes):
        left, top = half * WIDTH // 2 + generator.integers(2, 12), generator.integers(2, 10)
        width, height = generator.integers(36, 46), generator.integers(36, 46)
        boxes.append(tuple(int(value) for value in (left, top, left + width, top + height)))
        pixels[top : top + height, left : left + width] = [(37 * index) % 256, (101 * index) % 256, 200 * half]
    return Drawn(pixels, classes, boxes)


def save(array, path, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == 'P':
        image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(path)


def coco_content(drawn, names, ids, image_fields, rle=False):
    """Return the content of a COCO file of ``{image id: Drawn}``."""
    annotations = []
    for image_id, one in drawn.items():
        for number, (index, (left, top, right, bottom)) in enumerate(zip(one.classes, one.boxes)):
            polygon = [[left, top, right, top, right, bottom, left, bottom]]
            encoded = coco_mask.encode(np.asfortranarray(one.mask(number).astype(np.uint8)))
            encoded['counts'] = encoded['counts'].decode()
            area = (right - left) * (bottom - top)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=ids[index],
                    bbox=[left, top, right - left, bottom - top],
                    area=area,
                    segmentation=encoded if rle else polygon,
                )
            )
    images = [dict(id=image_id, height=HEIGHT, width=WIDTH, **image_fields(image_id)) for image_id in drawn]
    return dict(
        images=images, annotations=annotations, categories=[dict(id=ids[k], name=name) for k, name in enumerate(names)]
    )


def write_json(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root, names, numbers=dict(train=range(4), val=range(4, 6))):
    """``data/coco``: jpg images and instance files with gaps in the category ids."""
    ids = [index + 1 + index // 11 for index in range(len(names))]
    for split, chosen in numbers.items():
        drawn = {number + 1: draw(number, len(names)) for number in chosen}
        for image_id, one in drawn.items():
            save(one.pixels, root / f'data/coco/{split}2017/{image_id:012}.jpg')
        content = coco_content(drawn, names, ids, lambda image_id: dict(file_name=f'{image_id:012}.jpg'))
        for one in content['annotations']:
            one['iscrowd'] = 0
        write_json(content, root / f'data/coco/annotations/instances_{split}2017.json')
    return drawn


def write_lvis(root, names, numbers=dict(train=range(4), val=range(4, 6))):
    """``data/lvis_v1``: COCO's images, named by URL alone; validation images are in train2017, too; no ``iscrowd``."""
    ids = [index + 1 for index in range(len(names))]
    for split, chosen in numbers.items():
        drawn = {number + 1: draw(number, len(names)) for number in chosen}
        for image_id, one in drawn.items():
            save(one.pixels, root / f'data/lvis_v1/train2017/{image_id:012}.jpg')
        url = 'http://images.cocodataset.org/train2017/'
        extra = dict(neg_category_ids=[], not_exhaustive_category_ids=[])
        content = coco_content(drawn, names, ids, lambda image_id: dict(extra, coco_url=f'{url}{image_id:012}.jpg'))
        for number, category in enumerate(content['categories']):
            category.update(frequency='rcf'[number % 3], image_count=1, instance_count=1, synset=category['name'])
        write_json(content, root / f'data/lvis_v1/annotations/lvis_v1_{split}.json')
    return drawn


# Ids of gtFine's labels with instances, by Mask R-CNN's class index, and the train ids of the same classes
CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS = [24, 25, 26, 27, 28, 31, 32, 33], list(range(11, 19))


def write_cityscapes(root, names, numbers=dict(train=range(4), val=range(4, 6))):
    """``data/cityscapes``: images, train ids and instance ids by city, and the json of mmdet's converter."""
    base, city = root / 'data' / 'cityscapes', 'aachen'
    for split, chosen in numbers.items():
        drawn = {number: draw(number, len(names)) for number in chosen}
        for number, one in drawn.items():
            stem = f'{city}/{city}_000000_{number:06}'
            save(one.pixels, base / f'leftImg8bit/{split}/{stem}_leftImg8bit.png')
            train_ids = one.label_map(0, lambda index: CITYSCAPES_TRAIN_IDS[index])
            save(train_ids, base / f'gtFine/{split}/{stem}_gtFine_labelTrainIds.png')
            instances = np.full((HEIGHT, WIDTH), 7, np.uint16)  # road
            for place, index in enumerate(one.classes):
                instances[one.mask(place)] = CITYSCAPES_IDS[index] * 1000
            save(instances, base / f'gtFine/{split}/{stem}_gtFine_instanceIds.png')
        content = coco_content(
            drawn,
            names,
            CITYSCAPES_IDS,
            lambda number: dict(
                file_name=f'{city}/{city}_000000_{number:06}_leftImg8bit.png',
                segm_file=f'{city}/{city}_000000_{number:06}_gtFine_labelIds.png',
            ),
            rle=True,
        )
        for one in content['annotations']:
            one['iscrowd'] = 0
        write_json(content, base / f'annotations/instancesonly_filtered_gtFine_{split}.json')
    return drawn


def write_list(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{name}\n' for name in names))


def write_voc_boxes(root, names):
    """``data/VOCdevkit/VOC{2007,2012}`` for detection: xml with corners that count from 1, and lists of image names."""
    for year, split, chosen in ((2007, 'trainval', (0, 1)), (2012, 'trainval', (2, 3)), (2007, 'test', (4, 5))):
        folder = root / f'data/VOCdevkit/VOC{year}'
        drawn = {f'{number:06}': draw(number, len(names)) for number in chosen}
        for stem, one in drawn.items():
            save(one.pixels, folder / f'JPEGImages/{stem}.jpg')
            tree = ElementTree.Element('annotation')
            size = ElementTree.SubElement(tree, 'size')
            for key, value in dict(width=WIDTH, height=HEIGHT, depth=3).items():
                ElementTree.SubElement(size, key).text = str(value)
            for index, (left, top, right, bottom) in zip(one.classes, one.boxes):
                item = ElementTree.SubElement(tree, 'object')
                ElementTree.SubElement(item, 'name').text = names[index]
                ElementTree.SubElement(item, 'difficult').text = '0'
                box = ElementTree.SubElement(item, 'bndbox')
                for key, value in dict(xmin=left + 1, ymin=top + 1, xmax=right + 1, ymax=bottom + 1).items():
                    ElementTree.SubElement(box, key).text = str(value)
            (folder / 'Annotations').mkdir(exist_ok=True)
            ElementTree.ElementTree(tree).write(folder / f'Annotations/{stem}.xml')
        write_list(folder / f'ImageSets/Main/{split}.txt', drawn)
    return drawn


def write_voc_labels(root):
    """``data/VOCdevkit/VOC2012`` for segmentation: palette PNGs, plain ones of SBD, borders of 255, and lists."""
    folder = root / 'data/VOCdevkit/VOC2012'
    for split, labels, chosen in (
        ('train', 'SegmentationClass', (0, 1)),
        ('aug', 'SegmentationClassAug', (2, 3)),
        ('val', 'SegmentationClass', (4, 5)),
    ):
        drawn = {f'2007_{number:06}': draw(number, 20) for number in chosen}
        for stem, one in drawn.items():
            save(one.pixels, folder / f'JPEGImages/{stem}.jpg')
            indices = one.label_map(0, lambda index: index + 1)
            save(indices, folder / labels / f'{stem}.png', mode='L' if split == 'aug' else 'P')
        write_list(folder / f'ImageSets/Segmentation/{split}.txt', drawn)
    return drawn


def write_context(root):
    """``data/VOCdevkit/VOC2010``: labels 0 for background and 1 to 59."""
    folder = root / 'data/VOCdevkit/VOC2010'
    for split, chosen in (('train', range(4)), ('val', range(4, 6))):
        drawn = {f'2008_{number:06}': draw(number, 59) for number in chosen}
        for stem, one in drawn.items():
            save(one.pixels, folder / f'JPEGImages/{stem}.jpg')
            save(one.label_map(0, lambda index: index + 1), folder / f'SegmentationClassContext/{stem}.png')
        write_list(folder / f'ImageSets/SegmentationContext/{split}.txt', drawn)
    return drawn


def write_folders(root, base, image, label, splits, num_classes, ids=lambda index: index, ground=0):
    """A data set of folders alone, such as ADE20K's and COCO-Stuff's."""
    for split, chosen in zip(splits, (range(4), range(4, 6))):
        drawn = {f'{number:012}': draw(number, num_classes) for number in chosen}
        for stem, one in drawn.items():
            save(one.pixels, Path(root) / base / f'images/{split}/{stem}{image}')
            save(one.label_map(ground, ids), Path(root) / base / f'annotations/{split}/{stem}{label}')
    return drawn


def write_ade20k(root):
    """``data/ade``: labels 1 to 150, and 0 for unlabelled."""
    splits = ('training', 'validation')
    return write_folders(
        root, 'data/ade/ADEChallengeData2016', '.jpg', '.png', splits, 150, lambda index: index + 1, ground=3
    )


def write_coco_stuff(root):
    """``data/coco_stuff164k``: train ids 0 to 170."""
    return write_folders(
        root, 'data/coco_stuff164k', '.jpg', '_labelTrainIds.png', ('train2017', 'val2017'), 171, ground=170
    )


def write_places(root, numbers=range(8), side=40):
    """Samples of named arrays in a folder, as ``NamedArrays`` reads them; every other one is a folder of files.

    Elevation has NaN where it is missing, land cover 0, and every third sample has no climate. Returns the arrays.
    """
    places = {}
    for number in numbers:
        generator = np.random.default_rng(number)
        relief = np.cumsum(generator.normal(size=(side, side)), 0) + np.cumsum(generator.normal(size=(side, side)), 1)
        bands = (
            1000 + 100 * relief[..., None] * generator.uniform(0.5, 1.5, 5) + generator.normal(0, 50, (side, side, 5))
        )
        elevation = (300 + 20 * relief).astype(np.float32)
        elevation[:5, :7] = np.nan
        cover = np.digitize(relief, [-3, 3]) * 10 + 10  # 10, 20 and 30, as ESA WorldCover counts
        cover[-6:] = 0
        arrays = dict(
            optical=bands.clip(1, 60000).astype(np.uint16),
            elevation=elevation,
            cover=cover.astype(np.uint8),
            biome=np.uint8(number % 4),
            level=np.array('l1c' if number % 2 else 'l2a'),
        )
        if number % 3:
            arrays['climate'] = np.array([15 + relief.mean(), 800 - relief.mean(), np.nan], np.float32)
        path = Path(root) / f'{number:04}'
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            path.mkdir()
            for name, array in arrays.items():
                np.save(path / f'{name}.npy', array)
        else:
            np.savez(f'{path}.npz', **arrays)
        places[path.name] = arrays
    return places
