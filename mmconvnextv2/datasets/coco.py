"""COCO's annotation files as people really have them, for MMDetection.

mmdet's ``CocoDataset`` shows a bare KeyError for a missing field and stops in the middle of training at an instance
without a mask; here the first says what is missing where, and the second is left out before training.
"""
import json
from collections import Counter
from typing import List, Optional

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_text
from mmengine.logging import print_log

from ..errors import UserError

FIELDS = dict(
    categories=dict(id=int, name=str),
    images=dict(id=int, file_name=str, height=int, width=int),
    annotations=dict(id=int, image_id=int, category_id=int, bbox=list, area=(int, float)))


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` with an answer to every odd annotation.

    Left out and counted in the log: boxes wholly outside their picture or thinner than a pixel, areas of zero, other
    classes, and with ``needs_masks`` instances without polygons or RLE. Annotations of no picture of the file are
    passed over. Crowds are ignored in training and evaluation. Category ids may have gaps. Pictures without annotations
    are left out by ``filter_cfg``.

    Args:
        needs_masks (bool): Whether the model learns masks. Defaults to True.
        kwargs: See mmdet's ``CocoDataset``.

    Raises:
        ValueError: If the file is no COCO JSON, lacks a field, or leaves no picture to train on.
    """

    def __init__(self, *args, needs_masks: bool = True, **kwargs) -> None:
        self.needs_masks = needs_masks
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> List[dict]:
        """Read the file, and tell how much of it is used."""
        self._num_annotations = 0
        try:
            pictures = super().load_data_list()
        except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
            problem = find_problem(get_text(self.ann_file, backend_args=self.backend_args))
            raise UserError(f'{self.ann_file}: {problem or error}') from error
        kept = sum(len(picture['instances']) for picture in pictures)
        if kept < self._num_annotations:
            print_log(f'{self.ann_file}: {kept} of {self._num_annotations} annotations are used; the others lie '
                      'outside their picture, are thinner than a pixel, of other classes or without a mask', 'current')
        return pictures

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Leave out what cannot be learnt."""
        self._num_annotations += len(raw_data_info['raw_ann_info'])
        picture = super().parse_data_info(raw_data_info)
        if self.needs_masks and not self.test_mode:
            picture['instances'] = [one for one in picture['instances'] if one.get('mask')]
        return picture

    def filter_data(self) -> List[dict]:
        """Filter as mmdet does.

        Raises:
            ValueError: If nothing is left.
        """
        pictures = super().filter_data()
        if not pictures:
            raise UserError(f'{self.ann_file}: none of its {len(self.data_list)} pictures has an annotation of the '
                            f"classes {self.metainfo['classes']}: nothing to train on")
        return pictures


def find_problem(text: str) -> Optional[str]:
    """Return what is wrong with the text of a COCO file, None when every field is there."""
    try:
        content = json.loads(text)
    except ValueError as error:
        return f'no JSON ({error}): the file may be cut short'
    if not isinstance(content, dict):
        return f'expected COCO\'s object of {list(FIELDS)}, found a {type(content).__name__}'
    for part, fields in FIELDS.items():
        if not isinstance(content.get(part), list):
            return f'there is no list {part!r}'
        for place, item in enumerate(content[part]):
            lacking = [name for name in fields if name not in item]
            wrong = [name for name, kind in fields.items() if name in item and not isinstance(item[name], kind)]
            if lacking or wrong:
                return (f'{part}[{place}] (id {item.get("id")}) '
                        + (f'lacks {lacking}' if lacking else f'has {wrong[0]}={item[wrong[0]]!r}'))
            if part == 'annotations' and len(item['bbox']) != 4:
                return f'{part}[{place}] (id {item["id"]}) has bbox={item["bbox"]}, expected [x, y, width, height]'
    ids = Counter(item['id'] for item in content['annotations'])
    return next((f'{count} annotations have id {one}' for one, count in ids.items() if count > 1), None)
