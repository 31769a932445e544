"""Readers of label PNGs: indices, palettes or one colour per class (CVAT's ``labelmap.txt``), next to their images."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ...utils.errors import MissingFileError, UserError
from ..image_files import EXTENSIONS

FOLDERS = ('labels', 'masks', 'annotations', 'segmentationclass', 'gt', 'label')
IGNORED = 255
MOST = 256  # colours of label PNGs without a list of classes


class LabelMaps(NamedTuple):
    """Label PNGs and their images.

    Attributes:
        pairs (list[tuple[str, str]]): Image file and label file.
        classes (list[str]): Class names, by the label that :meth:`read` returns.
        values (dict): Index or RGB colour in the files -> label.
    """

    pairs: list[tuple[str, str]]
    classes: list[str]
    values: dict[int | tuple[int, ...], int]

    def read(self, path: str) -> np.ndarray:
        """Return a label map, uint8 (H, W); what is no class is 255, which training ignores."""
        pixels = read_label_png(path)
        labels = np.full(pixels.shape[:2], IGNORED, np.uint8)
        for value, label in self.values.items():
            labels[pixels == value if pixels.ndim == 2 else (pixels == np.array(value)).all(2)] = label
        return labels


def read_label_maps(source: str) -> LabelMaps:
    """Find images and label PNGs of the same names, and the classes in them.

    Args:
        source (str): Folder with the images in one folder and the labels in another, such as ``images`` and ``labels``,
            or CVAT's ``JPEGImages`` and ``SegmentationClass``. Classes come from CVAT's ``labelmap.txt``, or from
            ``classes.txt``, one name per line in the order of the indices.

    Raises:
        ValueError: If there are no pairs, or the labels are neither indices nor colours of the list.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise MissingFileError(f'{source} is not a folder')
    files = [path for path in sorted(folder.rglob('*')) if path.suffix.lower() in EXTENSIONS]
    labels = {path.stem: path for path in files if path.suffix.lower() == '.png' and _is_label(path, folder)}
    images = {path.stem: path for path in files if not _is_label(path, folder)}
    pairs = [(str(images[stem]), str(labels[stem])) for stem in sorted(set(images) & set(labels))]
    if not pairs:
        raise UserError(
            f'{source}: there are no images with label PNGs of the same name; expected folders such as images/ and '
            f'labels/ ({", ".join(FOLDERS)}), and found {len(images)} images and {len(labels)} labels'
        )
    colours = _cvat_colours(folder / 'labelmap.txt')
    if colours:
        colours.pop('background', None)
        return LabelMaps(pairs, list(colours), {value: label for label, value in enumerate(colours.values())})
    found = sorted({value for _, label in pairs for value in _values(label)} - {IGNORED})
    names = folder / 'classes.txt'
    if found and isinstance(found[0], tuple):
        raise UserError(
            f'{source}: label PNGs hold colours, such as {found[0]}: add labelmap.txt, one line NAME:R,G,B:: per class'
        )
    classes = [line.strip() for line in names.read_text().splitlines() if line.strip()] if names.is_file() else []
    classes = classes or [f'class{value}' for value in range(max(found) + 1)]
    if found[-1] >= len(classes):
        raise UserError(f'{names}: {len(classes)} class names, but a label PNG holds index {found[-1]}')
    return LabelMaps(pairs, classes, {value: value for value in range(len(classes))})


def _is_label(path: Path, folder: Path) -> bool:
    return any(part.lower() in FOLDERS for part in path.relative_to(folder).parts[:-1])


def read_label_png(path: str) -> np.ndarray:
    """Return indices (H, W) of a grey or palette PNG, or colours (H, W, 3)."""
    with Image.open(path) as opened:
        if opened.mode in ('1', 'L', 'P', 'I', 'I;16'):
            return np.asarray(opened).astype(np.int64)
        return np.asarray(opened.convert('RGB'))


def _values(path: str) -> list:
    pixels = read_label_png(path)
    if pixels.ndim == 2:
        return [int(one) for one in np.unique(pixels)]
    if (pixels == pixels[..., :1]).all():  # grey saved as colour
        return [int(one) for one in np.unique(pixels[..., 0])]
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    if len(colours) > MOST:
        raise UserError(f'{path} holds {len(colours)} colours: a photograph or a JPEG? Save labels as PNG')
    return [tuple(map(int, one)) for one in colours]


def _cvat_colours(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        return {}
    colours = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(':')
        if name and not line.startswith('#'):
            try:
                colours[name] = tuple(map(int, rest.split(':')[0].split(',')))
            except ValueError:
                raise UserError(f'{path}: expected NAME:R,G,B:: per line, got {line[:60]!r}') from None
    return colours
