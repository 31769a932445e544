"""``tools/reconstruct.py``: reconstructions of images with an FCMAE checkpoint."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from ..analysis.html import RECONSTRUCTION_COLUMNS
from ..checkpoint import check_weights, extract_state_dict
from ..checkpoint.load import load_file
from ..datasets.image_files import list_images
from ..pretrain.reconstruction import render_reconstructions
from ..pretrain.sampler import seeded
from ..utils.errors import UserError
from ..utils.public_models import find_model
from .arguments import add_config_options, load_config


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/reconstruct.py``."""
    parser = ArgumentParser(
        description='Write reconstructions of images by an FCMAE checkpoint, next to the originals.',
        epilog='Example: python tools/reconstruct.py configs/fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py '
        'epoch_800.pth a.jpg',
    )
    parser.add_argument('config', help='FCMAE config')
    parser.add_argument('checkpoint', help='checkpoint trained with the config, with decoder')
    parser.add_argument('images', nargs='+', help='image files or folders')
    parser.add_argument('--out', default='reconstruction.png', help='output file; default reconstruction.png')
    parser.add_argument('--num-images', type=int, default=8, help='maximum number of rows; default 8')
    parser.add_argument('--seed', type=int, default=0, help='seed of crops and masks; default 0')
    add_config_options(parser)
    return parser.parse_args(argv)


def reconstruct(args: Namespace) -> None:
    """Entry point of ``tools/reconstruct.py``: reconstruct images."""
    reconstruct_files(args.config, args.checkpoint, args.images, args.out, args.num_images, args.seed, args.cfg_options)


def reconstruct_files(
    config: str,
    checkpoint: str,
    paths: Sequence[str],
    out: str,
    num_images: int = 8,
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> None:
    """Reconstruct up to ``num_images`` images with a config's pipeline and model, and write them to ``out``.

    Args:
        config (str): Path of an FCMAE config.
        checkpoint (str): Checkpoint trained with the config, with decoder.
        paths (Sequence[str]): Image files and folders.
        out (str): PNG file to write, with one row per image; see ``RECONSTRUCTION_COLUMNS``.
        num_images (int): Maximum number of images. Defaults to 8.
        seed (int): Seed of crops and masks. Defaults to 0.
        options (dict, optional): Overrides, as in ``--cfg-options``. Defaults to None.

    Raises:
        ValueError: If the checkpoint belongs to another model, or an image cannot be read.
    """
    if find_model(checkpoint) is not None:
        raise UserError(
            f'{checkpoint}: public FCMAE weights have no decoder, which reconstructions need. Pass a checkpoint of '
            'your own pretraining'
        )
    cfg = load_config(config, options)
    pipeline_cfg = cfg.train_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
        pipeline = Compose(pipeline_cfg)
    weights = load_file(checkpoint)
    check_weights(model, weights, checkpoint)
    model.load_state_dict(extract_state_dict(weights))
    hook = next((one for one in cfg.get('custom_hooks') or [] if one['type'] == 'ReconstructionHook'), {})
    samples = []
    for number, item in enumerate(_list_items(cfg, paths)[:num_images]):
        with seeded(seed, 0, number):
            samples.append(pipeline(item))
    with torch.no_grad():
        Image.fromarray(render_reconstructions(model, default_collate(samples), hook.get('channels'))).save(out)
    print(f'{out}: {len(samples)} rows of {RECONSTRUCTION_COLUMNS}')


def _list_items(cfg: Config, paths: Sequence[str]) -> list[dict]:
    """Return what the pipeline of a config starts from: image files, or samples of named arrays."""
    dataset = cfg.train_dataloader.dataset
    if dataset.type != 'NamedArrays':
        return [dict(img_path=path) for path in list_images(paths)]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built: Any = DATASETS.build({**dataset, 'lazy_init': True})
    return [dict(img_path=path, arrays=built) for path in built.list_samples(paths)]
