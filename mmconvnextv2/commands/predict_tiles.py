"""``tools/predict.py --tile``: predictions for images that do not fit into memory."""

import json
import os
from argparse import ArgumentParser, Namespace
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.utils import ProgressBar

from ..datasets.image_files import class_colours, list_images
from ..datasets.rasters import RASTERS, Raster
from ..engine.inference import load
from ..engine.inference.images import as_bgr
from ..engine.inference.large_images import GRN_MODES, predict_raster
from ..utils.atomic import replacing
from ..utils.errors import UserError

SIDE_SHOWN = 2048  # pixels of the longer side of a drawn image
LINE = 2  # pixels


def add_tile_options(parser: ArgumentParser) -> None:
    """Add ``--tile`` and the options that go with it."""
    group = parser.add_argument_group('images that do not fit into memory, see docs/huge_images.md')
    group.add_argument('--tile', type=int, metavar='PIXELS', help='predict in tiles of this side, for example 1024')
    group.add_argument('--overlap', type=int, metavar='PIXELS', help='shared by tiles; default TILE / 8')
    group.add_argument(
        '--grn',
        choices=GRN_MODES,
        default='tile',
        help='norms of GRN: of tiles, or of the whole image; default tile',
    )
    group.add_argument('--bands', type=int, nargs='+', metavar='BAND', help='bands to read, from 1; default all')
    group.add_argument('--skip-corrupt', action='store_true', help='treat damaged blocks of a file as no data')


def check_tile_options(args: Namespace) -> None:
    """Raise ``ValueError`` for options of tiles without ``--tile``."""
    given = dict(overlap=args.overlap, grn=args.grn != 'tile', bands=args.bands, skip_corrupt=args.skip_corrupt)
    unused = [f'--{name.replace("_", "-")}' for name, value in given.items() if value not in (None, False)]
    if args.tile is None and unused:
        raise UserError(f'{", ".join(unused)}: only images that are predicted in tiles have that; add --tile PIXELS')


def predict_tiles(args: Namespace, cfg: Config) -> None:
    """Predict for all inputs of ``tools/predict.py`` in tiles, continuing an interrupted earlier call.

    Raises:
        ValueError: See :func:`~mmconvnextv2.engine.inference.predict_raster`.
    """
    paths = list_images(args.inputs, RASTERS)
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f'inputs: several files are named {twice[0]!r}: predict them in several calls')
    if args.grn != 'tile' and (args.amp or args.compile):
        raise UserError(
            f'--grn {args.grn} computes norms of the whole image layer by layer, in float32: leave out --amp and '
            '--compile'
        )
    model = load(cfg, args.checkpoint, args.device, amp=args.amp, compile=args.compile)
    settings = dict(
        config=args.config,
        config_modified=_modified(args.config),
        checkpoint=args.checkpoint,
        checkpoint_modified=_modified(args.checkpoint),
        options=repr(args.cfg_options),
        speed=[args.amp, args.compile],
    )
    predictions = []
    for path, name in zip(paths, names):
        try:
            found = predict_raster(
                model,
                path,
                args.out,
                tile=args.tile,
                overlap=args.overlap,
                grn=args.grn,
                bands=args.bands,
                score_threshold=args.score_thr,
                skip_corrupt=args.skip_corrupt,
                name=name,
                settings=settings,
                progress=ProgressBar,
            )
        except KeyboardInterrupt:
            raise SystemExit('\nstopped: run the same command to continue') from None
        predictions.append(found)
        print()
        _report(found, args.out)
        _draw(found, args.out, name, model.palette, args.bands)
    target = os.path.join(args.out, 'predictions.json')
    with replacing(target) as partial, open(partial, 'w', encoding='utf-8') as file:
        json.dump(dict(classes=list(model.classes), predictions=predictions), file, indent=1)
    print(f'{target}: {len(predictions)} predictions; drawn in {os.path.join(args.out, "drawn")}')


def _report(found: dict[str, Any], out: str) -> None:
    """Print what a user should know of one prediction."""
    if found['left_out']:
        print(f'{found["file"]}: read at its own resolution, without {", ".join(found["left_out"])} of the pipeline')
    if not found['georeferenced']:
        print(f'{found["file"]}: no georeference, so coordinates are columns and rows of pixels')
    if found['corrupt']:
        print(
            f'{found["file"]}: {len(found["corrupt"])} damaged blocks were left out, the first at {found["corrupt"][0]}'
        )
    parts = found.get('classes') or found.get('instances') or {}
    unit = ' %' if 'classes' in found else ''
    shown = ', '.join(f'{name} {count}{unit}' for name, count in sorted(parts.items(), key=lambda one: -one[1])[:8])
    target = os.path.join(out, found.get('labels') or found['geojson'])
    print(f'{target}: {shown or "nothing"}' + (f'; no data {found["no_data"]} %' if found['no_data'] else ''))


def _draw(found: dict[str, Any], out: str, name: str, palette: list | None, bands: list[int] | None) -> None:
    """Draw a prediction on the reduced image."""
    with Raster(found['file'], bands, skip_corrupt=True) as raster:
        image = _stretched(raster.read_reduced(SIDE_SHOWN))
    if 'labels' in found:
        with Raster(os.path.join(out, found['labels'])) as labels:
            labels.palette = None  # indices, not colours
            shown = labels.read_reduced(SIDE_SHOWN)[..., 0]
        colours = np.zeros((65536, 3), np.uint8)
        known = class_colours(255)
        known[: len(palette or [])] = (palette or [])[:255]
        colours[: len(known)] = known[:, ::-1]  # BGR
        valid = shown < np.iinfo(shown.dtype).max
        image[valid] = (image[valid] * 0.5 + colours[shown[valid]] * 0.5).astype(np.uint8)
    else:
        with open(os.path.join(out, found['coco']), encoding='utf-8') as file:
            content = json.load(file)
        scale = image.shape[1] / found['size'][1]
        colours = class_colours(len(content['categories']))[:, ::-1]
        for one in content['annotations']:
            left, top, width, height = (scale * side for side in one['bbox'])
            corners = (round(left), round(top)), (round(left + width), round(top + height))
            colour = tuple(map(int, colours[one['category_id'] - 1]))
            cv2.rectangle(image, *corners, colour, LINE)
    mmcv.imwrite(image, os.path.join(out, 'drawn', f'{name}.png'))


def _stretched(values: np.ndarray) -> np.ndarray:
    """Return the first bands of a raster as uint8 BGR; other dtypes than uint8 are stretched from 2 to 98 percent."""
    values = values[..., :3] if values.shape[2] > 2 else values[..., :1]
    if values.dtype != np.uint8:
        values = np.nan_to_num(values.astype(np.float32))
        low, high = np.percentile(values, (2, 98))
        values = ((values - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)
    return as_bgr(values[..., ::-1])


def _modified(path: str) -> float | None:
    return os.path.getmtime(path) if os.path.isfile(path) else None
