"""What labelling tools would export of a few real images: ``python benchmarks/few_images/exports.py DATA OUT``.

DATA has tiny_coco/ (COCO layout) and camvid/{images,annotations}/{train,val}. OUT gets photos/ and photos_held_out/
(COCO json as CVAT writes it), labelled/ and labelled_held_out/ (label PNGs), and crops/{train,val} (class folders).
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = ('person', 'toilet', 'sink')
CROPS = ('bicycle', 'person', 'sink', 'toilet')
LEAST_AREA = 32 * 32  # square pixels of an object that becomes a crop
STREET = 'Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist'.split()
UNLABELLED = 11


def read_coco(root: Path, split: str) -> tuple[dict, dict]:
    """Return the content of a split's json, and its class names by id."""
    content = json.loads((root / f'annotations/instances_{split}2017.json').read_text())
    return content, {one['id']: one['name'] for one in content['categories']}


def export_photos(root: Path, split: str, most: int, out: Path) -> None:
    """Write the first ``most`` images with objects of three classes, and these objects, as CVAT's COCO 1.0."""
    content, name_of = read_coco(root, split)
    objects = [one for one in content['annotations'] if name_of[one['category_id']] in PHOTOS]
    ids = {one['image_id'] for one in objects}
    images = [one for one in content['images'] if one['id'] in ids][:most]
    kept = {one['id'] for one in images}
    for part in ('images', 'annotations'):
        (out / part).mkdir(parents=True)
    for one in images:
        shutil.copy(root / f'{split}2017' / one['file_name'], out / 'images')
    labels = dict(
        categories=[dict(id=number, name=name, supercategory='') for number, name in enumerate(PHOTOS, 1)],
        images=[{key: one[key] for key in ('id', 'width', 'height', 'file_name')} for one in images],
        annotations=[
            dict(one, category_id=PHOTOS.index(name_of[one['category_id']]) + 1)
            for one in objects
            if one['image_id'] in kept
        ],
    )
    (out / 'annotations/instances_default.json').write_text(json.dumps(labels))


def export_frames(root: Path, split: str, most: int, out: Path) -> None:
    """Write ``most`` evenly spaced frames with label PNGs, 255 where nothing is labelled."""
    files = sorted((root / 'images' / split).glob('*.jpg'))
    chosen = [files[index] for index in np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int)]
    for part in ('images', 'labels'):
        (out / part).mkdir(parents=True)
    for path in chosen:
        shutil.copy(path, out / 'images')
        labels = np.array(Image.open(root / 'annotations' / split / f'{path.stem}.png'))
        Image.fromarray(np.where(labels == UNLABELLED, 255, labels).astype(np.uint8)).save(
            out / 'labels' / f'{path.stem}.png'
        )
    (out / 'classes.txt').write_text('\n'.join(STREET) + '\n')


def export_crops(root: Path, split: str, out: Path) -> None:
    """Write the boxes of objects of four classes as images in one folder per class."""
    content, name_of = read_coco(root, split)
    files = {one['id']: one['file_name'] for one in content['images']}
    for one in content['annotations']:
        name = name_of[one['category_id']]
        if name in CROPS and one['area'] > LEAST_AREA and not one['iscrowd']:
            (out / name).mkdir(parents=True, exist_ok=True)
            left, top, width, height = one['bbox']
            image = Image.open(root / f'{split}2017' / files[one['image_id']]).convert('RGB')
            image.crop((left, top, left + width, top + height)).save(out / name / f'{one["id"]}.jpg')


def main(data: Path, out: Path) -> None:
    """Write all exports."""
    export_photos(data / 'tiny_coco', 'train', 40, out / 'photos')
    export_photos(data / 'tiny_coco', 'val', 50, out / 'photos_held_out')
    export_frames(data / 'camvid', 'train', 60, out / 'labelled')
    export_frames(data / 'camvid', 'val', 101, out / 'labelled_held_out')
    for split in ('train', 'val'):
        export_crops(data / 'tiny_coco', split, out / 'crops' / split)


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))
