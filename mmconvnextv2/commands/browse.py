"""``tools/browse.py``: draw training samples with their labels, as the pipeline passes them to the model.

Samples are drawn by the visualizers of mmdet, mmseg and mmpretrain. FCMAE's samples show their visible cells.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.utils import track_iter_progress

from ..datasets.image_files import class_colours
from ..engine.pipelines import name_files
from ..models.execution import CELL
from ..utils.config import read_normalization
from ..utils.errors import UserError
from .arguments import add_config_options, load_config
from .data_checks import check_data

MASKED = 114  # grey level of masked cells


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/browse.py``."""
    parser = ArgumentParser(
        description='Draw training samples after augmentation, with boxes, masks, labels or visible cells.',
        epilog='Example: python tools/browse.py configs/upernet/upernet_convnextv2-a_160k_ade20k-512x512.py --num 20',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--out', default='samples', help='output folder for the images; default samples')
    parser.add_argument('--num', type=int, default=12, help='number of samples; default 12')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='split; default train')
    add_config_options(parser)
    return parser.parse_args(argv)


def to_displayable(inputs: np.ndarray, is_bgr: bool) -> np.ndarray:
    """Convert a sample (C, H, W), uint8 or float, to an RGB image (H, W, 3), uint8.

    If the number of channels is not three, the first one is shown in grey.
    """
    if len(inputs) != 3:
        inputs = np.repeat(inputs[:1], 3, axis=0)
    elif is_bgr:
        inputs = inputs[::-1]
    if inputs.dtype != np.uint8 and inputs.max() > 255:
        inputs = inputs / inputs.max() * 255  # more than 8 bits
    return np.ascontiguousarray(inputs.transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)


class Browser:
    """Renderer for the samples of a config's data set.

    Args:
        cfg (Config): Config with the data set.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
    """

    def __init__(self, cfg: Config, split: str = 'train') -> None:
        self.scope = cfg.default_scope
        with DefaultScope.overwrite_default_scope(self.scope):
            self.dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            name_files(self.dataset)
            self.visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None, 'name': 'browse'})
        self.visualizer.dataset_meta = self.dataset.metainfo
        self.is_bgr = read_normalization(cfg).swaps_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, index: int) -> np.ndarray:
        """Return one sample with its labels drawn on it, RGB (H, W, 3)."""
        item = self.dataset[index]
        sample = item['data_samples']
        image = to_displayable(item['inputs'].numpy(), self.is_bgr)
        if 'visible_cells' in sample:
            cell = sample.metainfo.get('cell_size', CELL)
            drawn = self._beside_masked(image, np.asarray(sample.visible_cells), cell)
            return np.concatenate([drawn, *draw_maps(item.get('targets', {}))], axis=1)
        if self.scope == 'mmpretrain':
            self.visualizer.visualize_cls(
                image,
                sample,
                classes=self.dataset.metainfo.get('classes'),
                draw_pred=False,
                resize=max(224, min(image.shape[:2])),
            )
            return self.visualizer.get_image()
        if 'gt_instances' in sample:
            self._unpack(sample.gt_instances)
        self.visualizer.add_datasample('sample', image, sample, draw_gt=True, draw_pred=False)
        return self.visualizer.get_image()

    @staticmethod
    def _beside_masked(image: np.ndarray, visible_cells: np.ndarray, cell: int) -> np.ndarray:
        """Return the image next to a copy with masked cells in grey."""
        height, width = (size // cell for size in image.shape[:2])
        visible = np.zeros(height * width, bool)
        visible[visible_cells] = True
        visible = visible.reshape(height, width).repeat(cell, 0).repeat(cell, 1)[..., None]
        return np.concatenate([image, np.where(visible, image, np.uint8(MASKED))], axis=1)

    @staticmethod
    def _unpack(instances: Any) -> None:
        """Convert boxes and masks to the plain types that mmdet's visualizer expects."""
        if hasattr(instances.bboxes, 'tensor'):
            instances.bboxes = instances.bboxes.tensor
        if 'masks' in instances:
            instances.masks = import_module('mmdet.models.utils').mask2ndarray(instances.masks).astype(bool)


def draw_maps(targets: dict[str, Any]) -> list[np.ndarray]:
    """Return RGB images (H, W, 3) of the maps among the targets of a ``NamedArrays`` sample, in their order.

    Of values the first channel is stretched from its smallest value, black, to its largest. Classes have colours.
    Missing values are grey.
    """
    drawn = []
    for target in targets.values():
        array = target.numpy()
        if array.ndim == 2:  # classes (H, W)
            colours = class_colours(max(int(array.max()) + 1, 1))
            pixels = np.where((array < 0)[..., None], MASKED, colours[array.clip(min=0)])
        elif array.ndim == 3:
            values = array[0].astype(np.float64)
            there = np.isfinite(values)
            low, high = (values[there].min(), values[there].max()) if there.any() else (0.0, 1.0)
            grey = np.where(there, (np.where(there, values, low) - low) / max(high - low, 1e-12) * 255, MASKED)
            pixels = grey[..., None].repeat(3, 2)
        else:
            continue
        drawn.append(pixels.astype(np.uint8))
    return drawn


def browse(args: Namespace) -> None:
    """Entry point of ``tools/browse.py``: draw samples.

    Raises:
        ValueError: If data files are missing, or the config has no data loader for the split.
    """
    cfg = load_config(args.config, args.cfg_options)
    if not cfg.get(f'{args.split}_dataloader'):
        raise UserError(f'--split={args.split}: the config has no {args.split}_dataloader')
    check_data(cfg, (args.split,))
    browser = Browser(cfg, args.split)
    for index in track_iter_progress(range(min(args.num, len(browser)))):
        path = os.path.join(args.out, f'{index:05d}.png')
        mmcv.imwrite(mmcv.rgb2bgr(browser.draw(index)), path)
    print(f'\n{args.out}: {min(args.num, len(browser))} of {len(browser)} samples')
