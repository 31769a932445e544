"""Provenance of public weights: who published them, under which licence, and the images that they expect.

A layout or an address tells most distributions apart. A file whose keys and name do not is left without provenance.
Licences are those that the distributions state for their weights.
"""

import re
from typing import NamedTuple

from .conversion import Backbone, has_grn, read_arch

LICENCE = 'The official ConvNeXt V2 weights are licensed CC BY-NC 4.0: no commercial use.'
IMAGENET = "They expect RGB images normalised with ImageNet's mean and deviation."
CLIP = (
    "They expect RGB images normalised with CLIP's mean and deviation, not ImageNet's: "
    'model.data_preprocessor.mean=[122.771,116.746,104.094] model.data_preprocessor.std=[68.5,66.632,70.323].'
)
SENTINEL = (
    'They expect bands of Sentinel-2, B1 B2 B3 B4 B5 B6 B7 B8A B8 B9 B11 B12 in this order, or B2 B3 B4, each '
    "normalised with MMEarth's statistics."
)


class Distribution(NamedTuple):
    """A public distribution of weights.

    Args:
        name (str): Short name.
        licence (str): Sentence on the licence of the weights.
        images (str): Sentence on the images that they expect.
        layouts (tuple[str]): Layouts that identify it. Defaults to none.
        address (str, optional): Pattern in the path or URL of its files in any layout. Defaults to None.
        grn (bool, optional): Whether its weights have GRN. Defaults to None, either.
        width (int, optional): Channels of its first stage. Defaults to None, any.
    """

    name: str
    licence: str
    images: str = IMAGENET
    layouts: tuple[str, ...] = ()
    address: str | None = None
    grn: bool | None = None
    width: int | None = None

    def describe(self) -> str:
        """Return licence and images in a line."""
        return f'{self.licence} {self.images}'


_CLIP = Distribution(
    'CLIP',
    "LAION's CLIP weights are licensed MIT, timm's fine-tuned ones Apache-2.0.",
    CLIP,
    ('openclip',),
    r'(^|[^a-z])clip[_-](laion|convnext)',
    grn=False,
)
DISTRIBUTIONS = (  # the first match holds
    Distribution(
        'EUPE',
        'EUPE weights are under the FAIR Noncommercial Research License: no commercial use.',
        address=r'(^|[^a-z])eupe([^a-z]|$)',
        grn=False,
    ),
    Distribution(
        'DINOv3',
        'DINOv3 weights are under the DINOv3 License; EUPE weights, which have the same keys, under the FAIR '
        'Noncommercial Research License.',
        layouts=('dinov3', 'huggingface-dinov3'),
        address='dinov3',
        grn=False,
    ),
    Distribution(
        'MMEarth',
        "MMEarth's repository has the licences of ConvNeXt V2, MIT and CC BY-NC 4.0.",
        SENTINEL,
        ('mmearth', 'mmearth-dense'),
    ),
    _CLIP._replace(
        name='CLIP ConvNeXt-XXLarge', images=f'{CLIP} Its LayerNorms have model.backbone.norm_eps=1e-5.', width=384
    ),
    _CLIP,
    Distribution(
        'SparK',
        'SparK weights are licensed MIT.',
        layouts=('spark',),
        address=r'(^|[^a-z])spark([^a-z]|$)|1kpretrained_official_style',
        grn=False,
    ),
    Distribution('ConvNeXt V2', LICENCE, layouts=('official-dense', 'official-sparse'), grn=True),
    Distribution(
        'ConvNeXt V2, converted',
        LICENCE,
        address=r'download\.openmmlab\.com/.*convnext-v2|huggingface\.co/(facebook|timm)/convnextv2',
    ),
    Distribution(
        'ConvNeXt', 'The official ConvNeXt V1 weights are licensed MIT.', layouts=('official-dense',), grn=False
    ),
    Distribution(
        'ConvNeXt, converted',
        'Hugging Face and timm license these ConvNeXt V1 weights Apache-2.0.',
        address=r'huggingface\.co/(facebook/convnext-|timm/convnext_)',
        grn=False,
    ),
)


def find_distribution(path: str, found: Backbone) -> Distribution | None:
    """Return the distribution that a file belongs to, judging by its layout, its address and its weights.

    Args:
        path (str): Path or URL of the file.
        found (Backbone): Its backbone.
    """
    grn, width = has_grn(found.weights), read_arch(found.weights)[1][0]
    return next(
        (
            one
            for one in DISTRIBUTIONS
            if (found.layout in one.layouts or (one.address and re.search(one.address, str(path), re.IGNORECASE)))
            and one.grn in (None, grn)
            and one.width in (None, width)
        ),
        None,
    )


def describe_provenance(path: str, found: Backbone) -> str:
    """Describe licence and images of a file; '' if its origin is unknown."""
    distribution = find_distribution(path, found)
    return distribution.describe() if distribution else ''
