"""``tools/predict.py``: predictions of a detector or segmentor for images, folders and videos.

Models are built with mmdet's and mmseg's own functions. Inputs pass through the pipeline of ``test_dataloader``, and
predictions are drawn with the libraries' visualizers.
"""

import json
import logging
import math
import os
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from operator import itemgetter
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.utils import ProgressBar

from ..analysis.html import Report
from ..datasets.image_files import EXTENSIONS, list_images, read_rgb, write_label_map
from ..engine.inference import load
from ..engine.inference.images import as_bgr
from ..utils.atomic import replacing
from ..utils.config import steps_of_test
from ..utils.errors import UserError
from .arguments import add_config_options, add_speed, check_checkpoint, load_config, settle_name
from .predict_tiles import add_tile_options, check_tile_options, predict_tiles

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.mpg', '.mpeg', '.m4v')
MOST_SHOWN = 60  # images in predictions.html
SIDE_SHOWN = 640  # pixels of their longer side
GRID = 512  # pixels of a side on which the confidence of a segmentation is computed
MOST_NAMED = 4  # classes of a segmentation in its caption


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/predict.py``."""
    parser = ArgumentParser(
        description='Predict objects or a segmentation for images, folders and videos. Writes OUT/drawn/, '
        'OUT/predictions.json, OUT/predictions.html and, for segmentation, OUT/labels/.',
        epilog='Example: python tools/predict.py configs/quickstart/mask-rcnn.py epoch_6.pth street.jpg film.mp4',
    )
    parser.add_argument('config', help='config file of a detector or segmentor, or the name of a public model')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint trained with the config; none after a name')
    parser.add_argument('inputs', nargs='*', help='image files, folders of images, video files')
    parser.add_argument('--out', default='predictions', help='output folder; default predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of an object, 0 to 1; default 0.3')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu, cuda, cuda:1 ..')
    add_speed(parser)
    add_tile_options(parser)
    add_config_options(parser)
    args = parser.parse_args(argv)
    first = settle_name(parser, args)
    args.inputs = args.inputs if first is None else [first, *args.inputs]
    if args.checkpoint is None or not args.inputs:
        parser.error(
            'expected CONFIG CHECKPOINT INPUT ... or NAME INPUT ...; `python -m mmconvnextv2 models` lists names'
        )
    return args


class ImageSource(NamedTuple):
    """Input file, and the name of its results relative to the output folder, without extension."""

    path: str
    name: str
    is_video: bool


def list_sources(inputs: Sequence[str], extensions: Sequence[str] = EXTENSIONS) -> list[ImageSource]:
    """List the images and videos in files and folders; results of a folder keep its directory structure.

    Args:
        inputs (Sequence[str]): Files and folders.
        extensions (Sequence[str]): Extensions of the files to list from folders. Defaults to those of images.

    Raises:
        FileNotFoundError: If an input does not exist.
        ValueError: If a folder has no image, or two results would have the same name.
    """
    sources = []
    for given in inputs:
        root = given if os.path.isdir(given) else os.path.dirname(given)
        is_video = given.lower().endswith(VIDEOS) and os.path.isfile(given)
        for path in [given] if is_video else list_images([given], extensions):
            sources.append(ImageSource(path, os.path.splitext(os.path.relpath(path, root))[0], is_video))
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f'inputs: {len(twice)} names belong to several files each, for example {twice[0]!r}, whose results '
            'would overwrite each other. Pass their parent folder, or predict in several calls'
        )
    return sources


class Predictor:
    """Detector or segmentor with methods to draw and describe its predictions.

    Args:
        cfg (Config): Config whose ``default_scope`` is 'mmdet' or 'mmseg'.
        checkpoint (str): Checkpoint trained with the config.
        device (str): Device such as 'cpu' or 'cuda:0'.
        score_threshold (float): Minimum score of objects to keep, 0 to 1. Defaults to 0.3.
        speed: ``amp`` and ``compile`` of :func:`mmconvnextv2.load`.

    Raises:
        ValueError: If the scope is not 'mmdet' or 'mmseg', the threshold is out of range, or the checkpoint belongs to
            another model.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str, score_threshold: float = 0.3, **speed: Any) -> None:
        self.scope = cfg.default_scope
        if self.scope not in ('mmdet', 'mmseg'):
            raise UserError(
                f'default_scope={self.scope!r}: only detectors (mmdet) and segmentors (mmseg) are supported'
            )
        if not 0 <= score_threshold <= 1:
            raise UserError(f'score_threshold={score_threshold}: expected 0 to 1')
        self.score_threshold = score_threshold
        self.model = load(cfg, checkpoint, device, **speed)
        with DefaultScope.overwrite_default_scope(self.scope):
            self.visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None, 'name': 'predictions'})
        if self.scope == 'mmdet':
            self.visualizer.dataset_meta = dict(classes=self.model.classes, palette=self.model.palette or 'random')
        else:
            self.visualizer.set_dataset_meta(classes=self.model.classes, palette=self.model.palette)

    @property
    def classes(self) -> list[str]:
        """Return the class names, indexed by label."""
        return list(self.model.classes)

    def read(self, path: str) -> dict:
        """Read an image file as the config's test pipeline does; see ``Model.read``."""
        return self.model.read(path)

    def __call__(self, image: dict | np.ndarray) -> Any:
        """Predict for one image.

        Args:
            image (dict | np.ndarray): Result of :meth:`read`, or a BGR image, uint8 (H, W, 3).

        Returns:
            DetDataSample | SegDataSample: Prediction on the CPU, without objects below the threshold.
        """
        image = self.model.read(image, 'bgr') if isinstance(image, np.ndarray) else image
        (sample,) = self.model.forward([image])
        if self.scope == 'mmdet':
            sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= self.score_threshold]
        return sample

    def draw(self, image_bgr: np.ndarray, sample: Any) -> np.ndarray:
        """Draw a prediction on its BGR image, uint8 (H, W, 3), and return the result as BGR."""
        options = dict(pred_score_thr=self.score_threshold) if self.scope == 'mmdet' else {}
        self.visualizer.add_datasample('prediction', mmcv.bgr2rgb(image_bgr), sample, draw_gt=False, **options)
        return mmcv.rgb2bgr(self.visualizer.get_image())

    def describe(self, sample: Any) -> dict[str, Any]:
        """Describe a prediction in JSON types.

        Returns:
            dict: ``instances``, a list of class, score, box (left, top, right, bottom in pixels) and, if predicted,
            mask (COCO's RLE); or ``classes``, the percentage of pixels of each class that occurs.
        """
        if self.scope == 'mmseg':
            labels = sample.pred_sem_seg.data
            share = labels.flatten().bincount(minlength=len(self.classes)).double() / labels.numel() * 100
            return dict(classes={name: round(float(value), 3) for name, value in zip(self.classes, share) if value})
        found = sample.pred_instances
        instances = [
            dict(**{'class': self.classes[int(label)]}, score=float(score), box=box.tolist())
            for label, score, box in zip(found.labels, found.scores, found.bboxes)
        ]
        if 'masks' in found:
            encode = import_module('mmdet.structures.mask').encode_mask_results
            for instance, mask in zip(instances, encode(found.masks.numpy())):
                instance['mask'] = dict(size=list(mask['size']), counts=mask['counts'].decode())
        return dict(instances=instances)


def confidence_of(sample: Any) -> float:
    """Return how sure a model is of a prediction, 0 to 1.

    For objects this is the lowest score, 0 if there are none; for a segmentation the mean probability of the labels, on
    a grid of at most 512 x 512 pixels, since logits of all classes at the size of a photo fill gigabytes.
    """
    if 'pred_sem_seg' not in sample:
        return float(sample.pred_instances.scores.amin()) if len(sample.pred_instances) else 0.0
    logits = sample.seg_logits.data  # (C, H, W); one channel for a binary head
    stride = math.ceil(max(logits.shape[1:]) / GRID)
    logits = logits[:, ::stride, ::stride].float()
    if len(logits) == 1:
        logits = torch.cat([logits, torch.zeros_like(logits)])
    return round(float(logits.softmax(0).amax(0).mean()), 4)


def write_gallery(predictions: Sequence[dict], sources: Sequence[ImageSource], out: str) -> None:
    """Write ``predictions.html`` with the drawn images, those with the least confidence first."""
    name_of = {source.path: source.name for source in sources}
    shown = sorted((one for one in predictions if 'confidence' in one), key=itemgetter('confidence'))
    if not shown:
        return
    images, captions = [], []
    for one in shown[:MOST_SHOWN]:
        name = name_of[one['file']]
        drawn = read_rgb(os.path.join(out, 'drawn', f'{name}.png'))
        images.append(mmcv.imrescale(drawn, min(1.0, SIDE_SHOWN / max(drawn.shape[:2])), interpolation='area'))
        captions.append(f'{name}: {_summary(one)}, confidence {one["confidence"]:.2f}')
    page = Report('Predictions')
    page.thumbnails(images, f'{len(images)} of {len(shown)} images, the least confident first', captions)
    page.write(os.path.join(out, 'predictions.html'))


def _summary(one: dict) -> str:
    """Return the classes of a prediction with their counts or their shares of pixels."""
    if 'instances' in one:
        counts = Counter(instance['class'] for instance in one['instances'])
        return ', '.join(f'{count} {name}' for name, count in counts.most_common()) or 'nothing'
    shares = sorted(one['classes'].items(), key=lambda pair: -pair[1])
    return ', '.join(f'{name} {share:.0f} %' for name, share in shares[:MOST_NAMED])


def predict_image(predictor: Predictor, source: ImageSource, out: str) -> Iterator[dict[str, Any]]:
    """Predict for one image file, write the drawn image and labels, and yield the description.

    An image that cannot be read or is too small for the model gets an ``error`` in its description.
    """
    try:
        results = predictor.read(source.path)
        image = as_bgr(results['img'].copy())
        sample = predictor(results)
    except torch.cuda.OutOfMemoryError:
        raise
    except (UserError, RuntimeError, ValueError, AssertionError, cv2.error) as error:
        text = ' '.join(str(error).split()) or type(error).__name__
        text = f'it{text.removeprefix(source.path)}' if text.startswith(f'{source.path} ') else text
        if not isinstance(error, UserError):
            text = f'the model cannot process this image ({text[:300]})'
        print_log(f'skipped {source.path}: {text}', 'current', logging.WARNING)
        yield dict(file=source.path, error=text)
        return
    mmcv.imwrite(predictor.draw(image, sample), os.path.join(out, 'drawn', f'{source.name}.png'))
    description = dict(file=source.path, **predictor.describe(sample), confidence=confidence_of(sample))
    if predictor.scope == 'mmseg':
        description['labels'] = os.path.join('labels', f'{source.name}.png')
        labels = sample.pred_sem_seg.data[0].numpy()  # (H, W)
        write_label_map(labels, os.path.join(out, description['labels']), predictor.model.palette)
    yield description


def predict_video(predictor: Predictor, source: ImageSource, out: str) -> Iterator[dict[str, Any]]:
    """Predict for every frame of a video, write the drawn video, and yield one description per frame.

    A video that cannot be read, or is shorter than its header says, gets a last description with an ``error``.
    """
    reader = mmcv.VideoReader(source.path)
    if not reader.opened or not reader.width:
        yield dict(file=source.path, error='it cannot be read as a video: convert it, for example to MP4 with H.264')
        return
    target = os.path.join(out, 'drawn', f'{source.name}.mp4')
    os.makedirs(os.path.dirname(target), exist_ok=True)
    writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*'mp4v'), reader.fps or 25, reader.resolution)
    if not writer.isOpened():
        raise UserError(f'{target} cannot be written: this OpenCV has no MPEG-4 encoder')
    number = 0
    try:
        for frame in reader:
            sample = predictor(frame)
            writer.write(predictor.draw(frame, sample))
            description = dict(file=source.path, frame=number, **predictor.describe(sample))
            if predictor.scope == 'mmseg':
                description['labels'] = os.path.join('labels', source.name, f'{number:06}.png')
                labels = sample.pred_sem_seg.data[0].numpy()  # (H, W)
                write_label_map(labels, os.path.join(out, description['labels']), predictor.model.palette)
            yield description
            number += 1
    finally:
        writer.release()
    if number < reader.frame_cnt:
        text = f'it ends after {number} of {reader.frame_cnt} frames: it is damaged or truncated'
        print_log(f'{source.path}: {text}', 'current', logging.WARNING)
        yield dict(file=source.path, frame=number, error=text)


class Journal:
    """Journal of finished predictions, one JSON line per description, from which an interrupted run continues.

    Args:
        out (str): Output folder; the journal is ``predictions.jsonl`` in it until all inputs are done.
        run (dict): Settings that the predictions depend on; a journal with other settings is discarded.
    """

    def __init__(self, out: str, run: dict[str, Any]) -> None:
        self.path = os.path.join(out, 'predictions.jsonl')
        os.makedirs(out, exist_ok=True)
        found, end = self._read(run)
        self.done = {entry['done'] for entry in found if 'done' in entry}
        if self.done:
            with open(self.path, 'r+b') as file:
                file.truncate(end)
        else:
            with replacing(self.path) as partial, open(partial, 'w') as file:
                file.write(json.dumps(dict(run=run)) + '\n')
        self.file = open(self.path, 'a', encoding='utf-8')

    def _read(self, run: dict[str, Any]) -> tuple[list[dict], int]:
        """Return the entries of a journal with the same settings, and its length in bytes up to the last done input."""
        if not os.path.isfile(self.path):
            return [], 0
        entries, place, end = [], 0, 0
        with open(self.path, 'rb') as file:
            for line in file:
                place += len(line)
                try:
                    entries.append(json.loads(line))
                except ValueError:  # cut off by a kill
                    break
                end = place if 'done' in entries[-1] else end
        return (entries, end) if entries and entries[0].get('run') == json.loads(json.dumps(run)) else ([], 0)

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry."""
        self.file.write(json.dumps(entry) + '\n')
        self.file.flush()

    def close(self) -> list[dict]:
        """Close the journal, and return its descriptions."""
        self.file.close()
        with open(self.path, encoding='utf-8') as file:
            entries = [json.loads(line) for line in file]
        return [entry for entry in entries if 'file' in entry]


def predict(args: Namespace) -> None:
    """Entry point of ``tools/predict.py``: predict for all inputs, continuing an interrupted earlier call.

    Raises:
        ValueError: See :class:`Predictor` and :func:`list_sources`; at the end, if an input could not be predicted.
    """
    check_checkpoint(args.checkpoint, 'checkpoint')
    cfg = load_config(args.config, args.cfg_options)
    check_tile_options(args)
    if args.tile is not None:
        return predict_tiles(args, cfg)
    loader = (steps_of_test(cfg) or [dict(type='')])[0]['type']
    reads_arrays = loader.rpartition('.')[2] == 'LoadMultiChannelImage'
    sources = list_sources(args.inputs, (*EXTENSIONS, '.npy') if reads_arrays else EXTENSIONS)
    predictor = Predictor(cfg, args.checkpoint, args.device, args.score_thr, amp=args.amp, compile=args.compile)
    journal = Journal(
        args.out,
        dict(
            config=args.config,
            config_modified=_modified(args.config),
            checkpoint=args.checkpoint,
            checkpoint_modified=_modified(args.checkpoint),
            options=repr(args.cfg_options),
            score_thr=args.score_thr,
            amp=args.amp,
        ),
    )
    if journal.done:
        print(f'{len(journal.done)} inputs are already predicted: continuing with the others')
    waiting = [source for source in sources if source.path not in journal.done]
    progress = ProgressBar(sum(mmcv.VideoReader(source.path).frame_cnt if source.is_video else 1 for source in waiting))
    try:
        for source in waiting:
            predict_one = predict_video if source.is_video else predict_image
            for description in predict_one(predictor, source, args.out):
                journal.add(description)
                progress.update()
            journal.add(dict(done=source.path))
    except KeyboardInterrupt:
        sys.exit(f'\nstopped: finished predictions are in {journal.path}; run the same command to continue')
    predictions = journal.close()
    target = os.path.join(args.out, 'predictions.json')
    order = {source.path: number for number, source in enumerate(sources)}
    predictions.sort(key=lambda one: order.get(one['file'], len(order)))
    with replacing(target) as partial, open(partial, 'w', encoding='utf-8') as file:
        json.dump(dict(classes=predictor.classes, predictions=predictions), file, indent=1)
    write_gallery(predictions, sources, args.out)
    os.remove(journal.path)
    print(f'\n{target}: {len(predictions)} predictions; drawn in {os.path.join(args.out, "drawn")}')
    wrong = [one for one in predictions if 'error' in one]
    if wrong:
        raise UserError(
            f'{len(wrong)} of {len(sources)} inputs were not predicted, or only in part, and have an error in '
            f'{target}: {wrong[0]["file"]}: {wrong[0]["error"]}'
        )


def _modified(path: str) -> float | None:
    return os.path.getmtime(path) if os.path.isfile(path) else None
