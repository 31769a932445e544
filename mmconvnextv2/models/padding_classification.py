"""MMPretrain's data preprocessor with padding that a backbone with ``valid_sites=True`` recognises."""

from math import nan
from typing import Any

from mmpretrain.models.utils.data_preprocessor import ClsDataPreprocessor
from mmpretrain.registry import MODELS


@MODELS.register_module()
class NaNPaddedClsDataPreprocessor(ClsDataPreprocessor):
    """MMPretrain's ``ClsDataPreprocessor`` that pads with NaN.

    Args:
        args, kwargs: Those of ``ClsDataPreprocessor``; ``pad_value`` is not used.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pad_value = nan
