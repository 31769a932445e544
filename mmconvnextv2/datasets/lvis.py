"""LVIS v1 for MMDetection, read as COCO files are: the package ``lvis`` is needed by the metric alone.

mmdet's ``LVISV1Dataset`` imports that package to read a file that is COCO JSON but for the names of its images. It
numbers classes in the order of category ids; here they are matched by name.
"""

from mmdet.datasets import LVISV1Dataset
from mmdet.registry import DATASETS

from .coco import CheckedCocoDataset

MISSPELT = {'speaker_(stereo_equipment)': 'speaker_(stero_equipment)'}  # mmdet's name, and the files' own


@DATASETS.register_module()
class CheckedLVISDataset(CheckedCocoDataset):
    """:class:`~mmconvnextv2.datasets.coco.CheckedCocoDataset` with the 1203 classes of LVIS v1.

    Images are named by the last two parts of their ``coco_url``, such as ``train2017/000000391895.jpg``: LVIS's
    validation split has images of COCO's train2017.

    Args:
        kwargs: See ``CheckedCocoDataset``.
    """

    METAINFO = dict(
        LVISV1Dataset.METAINFO,
        classes=tuple(MISSPELT.get(name, name) for name in LVISV1Dataset.METAINFO['classes']),
    )

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Name the image, then parse its annotations."""
        image = raw_data_info['raw_img_info']
        image['file_name'] = '/'.join(image['coco_url'].split('/')[-2:])
        return super().parse_data_info(raw_data_info)
