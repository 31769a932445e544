"""A trained detector, segmentor or classifier as a Python object: load it, give it images, get arrays."""

import threading
import warnings
from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...checkpoint import check_weights
from ...checkpoint.load import load_file
from ...checkpoint.whole_model import whole_model_weights
from ...datasets.image_files import read_image
from ...utils.config import inner_datasets, load_config, reads_files, steps_of_test
from ...utils.errors import UserError
from ...utils.public_models import get_model
from ..console import quiet_warnings
from .images import to_pipeline_image
from .results import Classification, Detections, Segmentation
from .speed import accelerate

Result = Detections | Segmentation | Classification


def load(
    config: str | Config,
    checkpoint: str | None = None,
    device: str | torch.device | None = None,
    options: dict[str, Any] | None = None,
    amp: str | None = None,
    compile: bool = False,
    batch_size: int = 1,
) -> 'Model':
    """Load a trained model.

    Args:
        config (str | Config): Config file of a detector, segmentor or classifier, the name of a public model, or what
            :func:`~mmconvnextv2.utils.config.load_config` made of it.
        checkpoint (str, optional): Path or URL of a checkpoint that it trained, or of public weights of the same model
            in any layout. It is read by an unpickler that builds data only, and the process's settings of torch stay as
            they are. Defaults to None, the public model's.
        device (str | torch.device, optional): Where the model runs. Defaults to None, the first GPU or else the CPU.
        options (dict, optional): Overrides of the config by dotted key. Defaults to None.
        amp (str, optional): Autocast dtype, ``'float16'`` or ``'bfloat16'``. Defaults to None, float32.
        compile (bool): Compile the backbone, once per image size, which takes a minute the first time. Defaults to
            False.
        batch_size (int): Images per forward pass, unless ``predict`` is given another number. Defaults to 1.

    Returns:
        Model: The model, in evaluation mode.

    Raises:
        ValueError: If the config or the checkpoint cannot be read, or they are of different models.

    Examples:
        >>> import mmconvnextv2
        >>> model = mmconvnextv2.load('upernet.py', 'iter_400.pth')
        >>> model.predict('street.jpg').labels.shape
        (375, 500)
    """
    with warnings.catch_warnings():
        quiet_warnings()
        cfg = config if isinstance(config, Config) else load_config(config, options)
        if checkpoint is None:
            if isinstance(config, Config):
                raise UserError('checkpoint is missing: only the name of a public model brings its own')
            checkpoint = get_model(config).weights
        content = load_file(checkpoint)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = revert_sync_batchnorm(_build(cfg))
        weights = whole_model_weights(content)
        check_weights(model, weights, str(checkpoint))
        model.load_state_dict(weights, strict=False)  # checked above, buffers may be fewer
        model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()
        accelerate(model, amp, compile)
        return Model(model, cfg, content.get('meta') or {}, str(checkpoint), batch_size)


def _build(cfg: Config) -> nn.Module:
    given = deepcopy(cfg.model)  # builders change the config that they are given, as DINO does
    if 'data_preprocessor' in cfg and 'data_preprocessor' not in given:  # as MMPretrain's configs have it
        given['data_preprocessor'] = dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
    return MODELS.build(given)


class Model:
    """A trained model; :func:`load` makes it.

    Calls from several threads wait for each other.

    Attributes:
        classes (tuple[str, ...]): Class names by label.
        palette (list, optional): Colours of the classes, RGB, 0 to 255, where the data set has them.
        module (nn.Module): The model of MMDetection, MMSegmentation or MMPretrain itself.
        config (Config): Its config.
        batch_size (int): Images per forward pass of ``predict``, by default.
    """

    def __init__(self, module: nn.Module, config: Config, meta: dict, source: str, batch_size: int = 1) -> None:
        self.module, self.config, self.batch_size = module, config, check_batch_size(batch_size)
        known = {str(key).lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}
        names = _class_names(known.get('classes') or meta.get('CLASSES'), config)
        if not names:
            raise UserError(f'the checkpoint {source} has no class names: pass one written by tools/train.py')
        self.classes = names
        palette = known.get('palette') or _palette_of(config)
        self.palette = [tuple(colour) for colour in palette] if isinstance(palette, (list, tuple)) else None
        module.dataset_meta = dict(known, classes=self.classes)
        steps = steps_of_test(config)
        if not steps:
            raise UserError(
                'test_dataloader.dataset.pipeline is missing, but predictions need it: set it in the config'
            )
        self.channels = _channels_of(config, steps[0])
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self._loader = Compose(steps[:1]) if reads_files(steps[0]) else None
            self._transform = Compose(steps[1:] if self._loader else steps)
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.module.parameters()).device

    def predict(
        self, images: Any, batch_size: int | None = None, channel_order: str = 'rgb', score_threshold: float = 0.0
    ) -> Result | list[Result]:
        """Predict for one image or a list of images.

        Args:
            images: A path, a Pillow image or an array, or a list of them. Arrays are uint8 or uint16 (H, W), (H, W, 3)
                or (H, W, 4); see :func:`~mmconvnextv2.engine.inference.images.to_pipeline_image`.
            batch_size (int): Images per forward pass; of several sizes, the model's preprocessor pads them to the
                largest. Defaults to None, the model's own ``batch_size``.
            channel_order (str): Order of the colour channels of arrays, ``'rgb'`` or ``'bgr'``. Defaults to ``'rgb'``.
            score_threshold (float): Detections below are left out, 0 to 1. Defaults to 0.

        Returns:
            Detections | Segmentation | Classification: One for one image, a list for a list.

        Raises:
            ValueError: If an image cannot be read; the message names it.
        """
        batch_size = self.batch_size if batch_size is None else check_batch_size(batch_size)
        if not 0 <= score_threshold <= 1:
            raise UserError(f'score_threshold={score_threshold}: expected 0 to 1')
        many = isinstance(images, Sequence) and not isinstance(images, str)
        given = list(images) if many else [images]
        found: list[Result] = []
        for start in range(0, len(given), batch_size):
            samples = self.forward([self.read(one, channel_order) for one in given[start : start + batch_size]])
            found += [to_result(sample, score_threshold) for sample in samples]
        return found if many else found[0]

    __call__ = predict

    def read(self, image: Any, channel_order: str = 'rgb') -> dict:
        """Return an image in the form in which a test pipeline has it after its first step, with ``img``.

        Raises:
            ValueError: If it cannot be read.
        """
        if isinstance(image, str) or hasattr(image, '__fspath__'):
            return read_image(self._loader, str(image))
        pixels = to_pipeline_image(image, self.channels, channel_order)
        return dict(img=pixels, img_path=None, img_id=0, img_shape=pixels.shape[:2], ori_shape=pixels.shape[:2])

    def forward(self, images: list[dict]) -> list[Any]:
        """Return the data samples of MMDetection, MMSegmentation or MMPretrain for what :meth:`read` gave."""
        scope = self.config.default_scope
        data = pseudo_collate([self._transform(dict(one)) for one in images])
        with self._lock, torch.inference_mode(), DefaultScope.overwrite_default_scope(scope):
            return [sample.cpu() for sample in self.module.test_step(data)]


def check_batch_size(batch_size: int) -> int:
    """Return a number of images per forward pass, or raise ``ValueError``."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f'batch_size={batch_size!r}: expected a whole number of at least 1')
    return batch_size


def to_result(sample: Any, score_threshold: float = 0.0) -> Result:
    """Return a data sample's prediction as arrays.

    Args:
        sample: A ``DetDataSample``, ``SegDataSample`` or MMPretrain ``DataSample`` on the CPU.
        score_threshold (float): Detections below are left out. Defaults to 0.
    """
    if 'pred_instances' in sample:
        found = sample.pred_instances
        found = found[found.scores >= score_threshold]
        found = found[found.scores.argsort(descending=True, stable=True)]
        masks = found.masks.numpy().astype(bool) if 'masks' in found else None
        boxes = found.bboxes.tensor if hasattr(found.bboxes, 'tensor') else found.bboxes
        return Detections(boxes.float().numpy(), found.scores.float().numpy(), found.labels.long().numpy(), masks)
    if 'pred_sem_seg' in sample:
        return Segmentation(sample.pred_sem_seg.data[0].long().numpy())
    return Classification(int(sample.pred_label.item()), sample.pred_score.float().numpy())


def _class_names(noted: Any, config: Config) -> tuple[str, ...]:
    """Return the class names that a checkpoint notes, or else those of its config or of the config's data set."""
    if noted is None:
        dataset = (config.get('test_dataloader') or {}).get('dataset') or {}
        noted = (dataset.get('metainfo') or {}).get('classes') or _metainfo_of(config).get('classes')
    return (noted,) if isinstance(noted, str) else tuple(noted or ())


def _palette_of(config: Config) -> Any:
    """Return the palette of the class of the test data set, None if it has none."""
    return _metainfo_of(config).get('palette')


def _metainfo_of(config: Config) -> dict:
    """Return what the class of the test data set says of its classes."""
    dataset = next(inner_datasets((config.get('test_dataloader') or {}).get('dataset') or {}), {})
    kind = import_module(f'{config.default_scope}.registry').DATASETS.get(dataset.get('type', ''))
    return getattr(kind, 'METAINFO', None) or {}


def _channels_of(config: Config, loader: dict) -> int:
    if str(loader.get('color_type', 'color')).startswith('gray'):
        return 1
    return int(loader.get('channels', config.model.backbone.get('in_channels', 3)))
