"""MMDetection's data preprocessor with padding that a backbone with ``valid_sites=True`` recognises."""

from math import nan
from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS


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
