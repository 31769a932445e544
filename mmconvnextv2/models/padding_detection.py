"""MMDetection's data preprocessor and necks for a backbone with ``valid_sites=True``."""

from math import nan
from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.necks import FPN, ChannelMapper
from mmdet.registry import MODELS

from .padding_maps import ValidMapper, ValidTopDown


@MODELS.register_module()
class NaNPaddedDetDataPreprocessor(DetDataPreprocessor):
    """MMDetection's ``DetDataPreprocessor`` that pads with NaN, also in ``batch_augments`` such as BatchFixedSizePad.

    Args:
        args, kwargs: Those of ``DetDataPreprocessor``; ``pad_value`` and ``img_pad_value`` are not used.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pad_value = nan
        for augment in self.batch_augments or ():
            if hasattr(augment, 'img_pad_value'):
                augment.img_pad_value = nan


@MODELS.register_module()
class ValidFPN(ValidTopDown, FPN):
    """MMDetection's ``FPN`` with maps that stay zero at invalid sites; arguments and weights are the same."""


@MODELS.register_module()
class ValidChannelMapper(ValidMapper, ChannelMapper):
    """MMDetection's ``ChannelMapper``, the neck of DINO and DDQ, with maps that stay zero at invalid sites.

    Its GroupNorm counts valid sites. Arguments and weights are the same.
    """
