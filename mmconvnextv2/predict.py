"""What ``tools/predict.py`` does: a detector's or segmentor's predictions for pictures, folders and videos.

Models are built and run by mmdet's and mmseg's own inference functions and drawn by their visualizers.
"""
import logging
import os
from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import mmcv
import mmengine
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.logging import print_log
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.utils import ProgressBar

from .checkpoint import check_weights
from .errors import UserError
from .launch import check_checkpoint, load_config
from .pictures import list_pictures
from .safe_loading import allow_mmengine_checkpoints, load_file

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.mpg', '.mpeg', '.m4v')


def parse_args(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Parse the arguments of ``tools/predict.py``."""
    parser = ArgumentParser(
        description='Predict objects or a segmentation for pictures, folders and videos. Writes OUT/drawn/, '
        'OUT/predictions.json and, for segmentation, OUT/labels/.',
        epilog='Example: python tools/predict.py configs/quickstart/mask-rcnn.py epoch_6.pth street.jpg film.mp4')
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('checkpoint', help='checkpoint that it trained')
    parser.add_argument('inputs', nargs='+', help='picture files, folders of pictures, video files')
    parser.add_argument('--out', default='predictions', help='folder of the results; default predictions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score of an object, 0 to 1; default 0.3')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cpu, cuda, cuda:1 ..')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value ...')
    parser.add_argument('--traceback', action='store_true', help='show where in the code a mistake was found')
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    return parser.parse_args(argv)


class Source(NamedTuple):
    """One input file and the name of its results below the output folder, without an ending."""
    path: str
    name: str
    is_video: bool


def list_sources(inputs: Sequence[str]) -> List[Source]:
    """List the pictures and videos among files and folders; results of a folder keep its tree.

    Raises:
        FileNotFoundError: If an input is not there.
        ValueError: If a folder has no picture, or two results would have one name.
    """
    sources = []
    for given in inputs:
        root = given if os.path.isdir(given) else os.path.dirname(given)
        is_video = given.lower().endswith(VIDEOS) and os.path.isfile(given)
        for path in [given] if is_video else list_pictures([given]):
            sources.append(Source(path, os.path.splitext(os.path.relpath(path, root))[0], is_video))
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f'inputs: {len(twice)} names stand for several files, for example {twice[0]!r}; their results '
                        'would overwrite each other. Give the folder above them, or predict in several calls.')
    return sources


class Predictor:
    """A detector or segmentor that draws and describes what it predicts.

    Args:
        cfg (Config): The config; ``default_scope`` is 'mmdet' or 'mmseg'.
        checkpoint (str): A checkpoint that it trained.
        device (str): Such as 'cpu' or 'cuda:0'.
        score_threshold (float): Objects below are left out. Defaults to 0.3.

    Raises:
        ValueError: If the scope is another, or the checkpoint belongs to another model.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str, score_threshold: float = 0.3) -> None:
        self.scope = cfg.default_scope
        if self.scope not in ('mmdet', 'mmseg'):
            raise UserError(f'default_scope={self.scope!r}: predictions are drawn for detectors (mmdet) and '
                            'segmentors (mmseg) only.')
        if not 0 <= score_threshold <= 1:
            raise UserError(f'score_threshold={score_threshold}: expected 0 to 1.')
        weights = load_file(checkpoint)
        if 'dataset_meta' not in weights.get('meta', {}):
            raise UserError(f'the checkpoint {checkpoint} holds no class names; give one that tools/train.py wrote.')
        self.score_threshold = score_threshold
        self.apis = import_module(f'{self.scope}.apis')
        allow_mmengine_checkpoints()
        start = self.apis.init_detector if self.scope == 'mmdet' else self.apis.init_model
        self.model = start(cfg, checkpoint, device=device)
        check_weights(self.model, weights, checkpoint)
        with DefaultScope.overwrite_default_scope(self.scope):
            self.visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None, 'name': 'predictions'})
        if self.scope == 'mmdet':
            self.visualizer.dataset_meta = self.model.dataset_meta
        else:
            meta = self.model.dataset_meta
            self.visualizer.set_dataset_meta(classes=meta['classes'], palette=meta.get('palette'))

    @property
    def classes(self) -> List[str]:
        """Class names by label."""
        return list(self.model.dataset_meta['classes'])

    def __call__(self, picture_bgr: np.ndarray) -> Any:
        """Predict for one picture, uint8 (H, W, 3), blue first; returns a ``DetDataSample`` or ``SegDataSample``."""
        if self.scope == 'mmseg':
            return self.apis.inference_model(self.model, picture_bgr).cpu()
        sample = self.apis.inference_detector(self.model, picture_bgr).cpu()
        sample.pred_instances = sample.pred_instances[sample.pred_instances.scores >= self.score_threshold]
        return sample

    def draw(self, picture_bgr: np.ndarray, sample: Any) -> np.ndarray:
        """Draw a prediction onto its picture; uint8 (H, W, 3), blue first."""
        options = dict(pred_score_thr=self.score_threshold) if self.scope == 'mmdet' else {}
        self.visualizer.add_datasample('prediction', mmcv.bgr2rgb(picture_bgr), sample, draw_gt=False, **options)
        return mmcv.rgb2bgr(self.visualizer.get_image())

    def describe(self, sample: Any) -> Dict[str, Any]:
        """Describe a prediction in JSON's types.

        Returns:
            dict: ``instances``, a list of class, score, box (left, top, right, bottom in pixels) and, if predicted,
            mask (COCO's run lengths); or ``classes``, the share of pixels in percent of every class that occurs.
        """
        if self.scope == 'mmseg':
            labels = sample.pred_sem_seg.data
            share = labels.flatten().bincount(minlength=len(self.classes)).double() / labels.numel() * 100
            return dict(classes={name: round(float(value), 3) for name, value in zip(self.classes, share) if value})
        found = sample.pred_instances
        instances = [
            dict(**{'class': self.classes[int(label)]}, score=float(score), box=box.tolist())
            for label, score, box in zip(found.labels, found.scores, found.bboxes)]
        if 'masks' in found:
            encode = import_module('mmdet.structures.mask').encode_mask_results
            for instance, mask in zip(instances, encode(found.masks.numpy())):
                instance['mask'] = dict(size=list(mask['size']), counts=mask['counts'].decode())
        return dict(instances=instances)


def predict_picture(predictor: Predictor, source: Source, out: str) -> Iterator[Dict[str, Any]]:
    """Predict for one picture file, write its drawing and labels and yield its description; a file that cannot be read
    is described by an ``error``."""
    picture = mmcv.imread(source.path)
    if picture is None:
        print_log(f'skipped {source.path}: it cannot be read as a picture', 'current', logging.WARNING)
        yield dict(file=source.path, error='it cannot be read as a picture')
        return
    sample = predictor(picture)
    mmcv.imwrite(predictor.draw(picture, sample), os.path.join(out, 'drawn', f'{source.name}.png'))
    description = dict(file=source.path, **predictor.describe(sample))
    if predictor.scope == 'mmseg':
        description['labels'] = os.path.join('labels', f'{source.name}.png')
        dtype = np.uint8 if len(predictor.classes) <= 256 else np.uint16
        labels = sample.pred_sem_seg.data[0].numpy().astype(dtype)  # (H, W)
        mmcv.imwrite(labels, os.path.join(out, description['labels']))
    yield description


def predict_video(predictor: Predictor, source: Source, out: str) -> Iterator[Dict[str, Any]]:
    """Predict for every frame of a video, write the drawn video and yield a description a frame.

    Raises:
        ValueError: If the video has no frame that can be read, or the drawn one cannot be written.
    """
    import cv2
    reader = mmcv.VideoReader(source.path)
    if not reader.opened or not reader.width:
        raise UserError(f'{source.path} cannot be read as a video; convert it, for example to MP4 with H.264.')
    target = os.path.join(out, 'drawn', f'{source.name}.mp4')
    os.makedirs(os.path.dirname(target), exist_ok=True)
    writer = cv2.VideoWriter(target, cv2.VideoWriter_fourcc(*'mp4v'), reader.fps or 25, reader.resolution)
    if not writer.isOpened():
        raise UserError(f'{target} cannot be written: this OpenCV has no MPEG-4 encoder.')
    try:
        for number, frame in enumerate(reader):
            sample = predictor(frame)
            writer.write(predictor.draw(frame, sample))
            yield dict(file=source.path, frame=number, **predictor.describe(sample))
    finally:
        writer.release()


def predict(args: Namespace) -> None:
    """Predict as ``tools/predict.py`` is told to.

    Raises:
        ValueError: See :class:`Predictor` and :func:`list_sources`.
    """
    sources = list_sources(args.inputs)
    check_checkpoint(args.checkpoint, 'checkpoint')
    predictor = Predictor(load_config(args), args.checkpoint, args.device, args.score_thr)
    predictions = []
    progress = ProgressBar(sum(mmcv.VideoReader(source.path).frame_cnt if source.is_video else 1 for source in sources))
    for source in sources:
        predict_one = predict_video if source.is_video else predict_picture
        for description in predict_one(predictor, source, args.out):
            predictions.append(description)
            progress.update()
    target = os.path.join(args.out, 'predictions.json')
    mmengine.dump(dict(classes=predictor.classes, predictions=predictions), target, indent=1)
    print(f'\n{target}: {len(predictions)} predictions; drawn in {os.path.join(args.out, "drawn")}')
