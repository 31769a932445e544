"""Dataset and metric for MMDetection that handle COCO annotation files as they occur in practice.

mmdet's ``CocoDataset`` and ``CocoMetric`` number classes in the order of the file's categories, whatever names the
config gives, raise a bare KeyError for a missing field, and fail on an object without a mask in the middle of training
or at the first evaluation. Here classes are matched by name, the file is checked once when it is read, and annotations
that cannot be used are dropped before training.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get, get_local_path
from mmengine.logging import print_log
from PIL import Image

from ..utils.errors import UserError

ORIENTATION = 0x0112  # EXIF tag
NUM_CHECKED = 50
FIELDS = dict(
    categories=dict(id=int, name=str),
    images=dict(id=int, file_name=str, height=int, width=int),
    annotations=dict(id=int, image_id=int, category_id=int, bbox=list, area=(int, float)),
)


def decode_json(content: bytes, source: str) -> Any:
    """Decode a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark, or in cp1252.

    Raises:
        ValueError: If the content is not JSON.
    """
    try:
        try:
            return json.loads(content)
        except UnicodeDecodeError:
            print_log(f'{source} is not UTF-8: reading it as cp1252, the Windows encoding', 'current')
            return json.loads(content.decode('cp1252'))
    except ValueError as error:
        raise UserError(f'{source}: not valid JSON ({error}): the file may be truncated') from error


def read_annotations(path: str, backend_args: dict | None = None) -> dict[str, Any]:
    """Read a COCO file, set a missing ``iscrowd`` to 0, and renumber objects from 1 if an id is below 1.

    Args:
        path (str): Local path, or a path of one of mmengine's file backends.
        backend_args (dict, optional): See mmengine's ``fileio``. Defaults to None.

    Raises:
        ValueError: If the file is not COCO JSON, lacks a field, or two images or two objects share an id.
    """
    content = decode_json(get(path, backend_args=backend_args), path)
    try:
        objects, images = content.setdefault('annotations', []), content['images']
        ids = [one['id'] for one in objects]
        sound = len(set(ids)) == len(ids) and len({one['id'] for one in images}) == len(images)
        for one in objects:
            one.setdefault('iscrowd', 0)
            sound = sound and len(one['bbox']) == 4
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f'{path}: {find_problem(content) or "unknown layout"}')
    if min(ids, default=1) < 1:  # pycocotools treats a match with object 0 as no match
        for number, one in enumerate(objects, 1):
            one['id'] = number
    return content


class CheckedCOCO(COCO):
    """pycocotools' index of a file read with :func:`read_annotations`; categories are looked up by name.

    Args:
        annotation_file (str, optional): Path of the file. Defaults to None, an empty index.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        self.source = annotation_file
        if annotation_file is not None:
            self.dataset = read_annotations(annotation_file)
            with redirect_stdout(io.StringIO()):  # it prints two lines each time
                self.createIndex()
            self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Return category ids in the order of the names; a name missing in the file gets a category without objects.

        If several categories have the same name, such as the root category that Roboflow adds, the one with objects
        is used.

        Raises:
            ValueError: If two categories of the same name have objects.
        """
        if not cat_names or sup_names or cat_ids:
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        used = {one['category_id'] for one in self.dataset['annotations']}
        return [self._find(name, used) for name in ([cat_names] if isinstance(cat_names, str) else cat_names)]

    def _find(self, name: str, used: set) -> int:
        ids = [one['id'] for one in self.dataset['categories'] if one['name'] == name]
        if len(ids) > 1:
            ids = [one for one in ids if one in used] or ids[-1:]
        if len(ids) > 1:
            raise UserError(
                f'{self.source}: the categories {ids} are all named {name!r} and all have objects: give them '
                'different names'
            )
        if not ids:
            ids = [max(self.cats, default=0) + 1]
            self.cats[ids[0]] = dict(id=ids[0], name=name)
            self.dataset['categories'].append(self.cats[ids[0]])
        return ids[0]


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` with defined behaviour for unusual annotations, for training, validation and test.

    Classes are matched by name, so ``metainfo.classes`` may be in any order. Boxes entirely outside their image or less
    than a pixel wide or high, zero areas, other classes and, with ``needs_masks``, instances without polygons or RLE
    are dropped and counted in the log. Annotations whose image is not in the file are skipped. Crowds are ignored in
    training and evaluation. Category ids may have gaps. ``filter_cfg`` drops images without annotations.

    Args:
        needs_masks (bool): Whether the model learns masks. Defaults to True.
        kwargs: See mmdet's ``CocoDataset``.

    Raises:
        ValueError: If the file is not COCO JSON, lacks a field, or contains nothing to train on.
    """

    COCOAPI = CheckedCOCO

    def __init__(self, *args, needs_masks: bool = True, **kwargs) -> None:
        self.needs_masks = needs_masks
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read the file, and log how many of its annotations are used."""
        self._num_annotations = 0
        try:
            images = super().load_data_list()
        except UserError:
            raise
        except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
            problem = find_problem(decode_json(get(self.ann_file, backend_args=self.backend_args), self.ann_file))
            if problem is None:
                raise
            raise UserError(f'{self.ann_file}: {problem}') from error
        self._check_sizes(images[:NUM_CHECKED])
        kept = sum(len(image['instances']) for image in images)
        if kept < self._num_annotations:
            print_log(
                f'{self.ann_file}: {kept} of {self._num_annotations} annotations are used; the others are outside '
                'their image, thinner than a pixel, of other classes or without a mask',
                'current',
            )
        return images

    def _check_sizes(self, images: Sequence[dict]) -> None:
        """Compare the sizes in the file with those of its first images, rotated according to EXIF.

        Raises:
            ValueError: If they differ, since boxes and masks would be misplaced.
        """
        for image in images:
            try:
                with Image.open(image['img_path']) as file:
                    turned = file.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                    width, height = file.size[::-1] if turned else file.size
            except (OSError, SyntaxError, ValueError):  # missing, remote or damaged; reported when it is loaded
                continue
            if (height, width) != (image['height'], image['width']):
                raise UserError(
                    f'{self.ann_file}: {image["img_path"]} has {width} x {height} pixels'
                    f'{", rotated according to its EXIF" if turned else ""}, but the file says {image["width"]} x '
                    f'{image["height"]}: export the annotations for these images again, or rotate the image files '
                    'with exiftran or ImageMagick -auto-orient'
                )

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Drop instances without masks if the model learns masks."""
        self._num_annotations += len(raw_data_info['raw_ann_info'])
        image = super().parse_data_info(raw_data_info)
        if self.needs_masks:
            image['instances'] = [one for one in image['instances'] if one.get('mask')]
        return image

    def filter_data(self) -> list[dict]:
        """Filter images as mmdet does.

        Raises:
            ValueError: If no image remains, or only crowds.
        """
        images = super().filter_data()
        if not images:
            raise UserError(
                f'{self.ann_file}: none of its {len(self.data_list)} images has an annotation of the '
                f'classes {self.metainfo["classes"]}, so there is nothing to train on: check metainfo.classes'
            )
        instances = [one for image in images for one in image['instances']]
        if not self.test_mode and instances and all(one['ignore_flag'] for one in instances):
            raise UserError(f'{self.ann_file}: {ALL_CROWDS}'.format(len(instances)))
        return images


ALL_CROWDS = (
    'all {} objects have iscrowd=1, as in mask exports from CVAT, but crowds are neither learnt nor evaluated: set '
    'iscrowd to 0 in the file'
)


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` that reads files like :class:`CheckedCocoDataset`, with classes matched by name.

    For objects without a mask, mask AP uses the box as the mask; their number is logged.

    Args:
        ann_file (str, optional): As in ``CocoMetric``.
        backend_args (dict, optional): As in ``CocoMetric``.
        kwargs: See mmdet's ``CocoMetric``.

    Raises:
        ValueError: If the file is invalid, all its objects are crowds, or it lacks an image of the data.
    """

    def __init__(self, ann_file: str | None = None, *args, backend_args: dict | None = None, **kwargs) -> None:
        super().__init__(None, *args, backend_args=backend_args, **kwargs)
        self.ann_file = ann_file
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=backend_args) as path:
            self._coco_api = CheckedCOCO(path)
        objects = self._coco_api.dataset['annotations']
        if objects and all(one['iscrowd'] for one in objects):
            raise UserError(f'{ann_file}: {ALL_CROWDS}'.format(len(objects)))
        if 'segm' in self.metrics:
            self._give_masks(objects)

    def _give_masks(self, objects: list[dict]) -> None:
        without = [one for one in objects if not one.get('segmentation')]
        for one in without:
            left, top, width, height = one['bbox']
            right, bottom = left + width, top + height
            one['segmentation'] = [[left, top, right, top, right, bottom, left, bottom]]
        if without:
            print_log(
                f'{self.ann_file}: {len(without)} of {len(objects)} objects have no mask; mask AP uses their boxes',
                'current',
            )

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Collect the results of a batch.

        Raises:
            ValueError: If an image is not in the annotation file.
        """
        if self.ann_file is not None:
            unknown = [one['img_id'] for one in data_samples if one['img_id'] not in self._coco_api.imgs]
            if unknown:
                raise UserError(
                    f'val_evaluator.ann_file or test_evaluator.ann_file={self.ann_file!r} has no image '
                    f'with id {unknown[0]}: set it to the annotation file of the evaluated data'
                )
        super().process(data_batch, data_samples)


def find_problem(content: Any) -> str | None:
    """Return what is wrong with the content of a COCO file, or None if all fields are valid."""
    if not isinstance(content, dict):
        return f"expected COCO's object with {list(FIELDS)}, found a {type(content).__name__}"
    for part, fields in FIELDS.items():
        if not isinstance(content.get(part), list):
            return f'there is no list {part!r}'
        for place, item in enumerate(content[part]):
            if not isinstance(item, dict):
                return f'{part}[{place}] is a {type(item).__name__}, expected an object'
            lacking = [name for name in fields if name not in item and not (name == 'file_name' and 'coco_url' in item)]
            wrong = [name for name, kind in fields.items() if name in item and not isinstance(item[name], kind)]
            if lacking or wrong:
                return f'{part}[{place}] (id {item.get("id")}) ' + (
                    f'lacks {lacking}' if lacking else f'has {wrong[0]}={item[wrong[0]]!r}'
                )
            if part == 'annotations' and len(item['bbox']) != 4:
                return f'{part}[{place}] (id {item["id"]}) has bbox={item["bbox"]}, expected [x, y, width, height]'
    for part in ('images', 'annotations'):
        count_of = Counter(item['id'] for item in content[part])
        twice = {one: count for one, count in count_of.items() if count > 1}
        if twice:
            one = next(iter(twice))
            return (
                f'{twice[one]} {part} have id {one}, and {len(twice)} ids in total occur more than once: renumber '
                'them, for example after merging two files'
            )
    return None
