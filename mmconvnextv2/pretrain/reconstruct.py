"""Reconstruction pictures from a checkpoint, for pictures of one's own."""
import os
from typing import List, Sequence

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import DefaultScope
from mmengine.utils import scandir
from mmpretrain.registry import MODELS
from PIL import Image

from ..checkpoint import unwrap
from ..safe_loading import load_file
from .data import seeded
from .hooks import draw_reconstructions

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm')


def list_pictures(paths: Sequence[str]) -> List[str]:
    """Return picture files, those of folders in order of name.

    Raises:
        FileNotFoundError: If a path is not there.
        ValueError: If there is no picture.
    """
    files = []
    for path in paths:
        if os.path.isdir(path):
            names = scandir(path, suffix=EXTENSIONS, recursive=True, case_sensitive=False)
            files += [os.path.join(path, name) for name in sorted(names)]
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise FileNotFoundError(f'{path} does not exist')
    if not files:
        raise ValueError(f'there is no picture ({", ".join(EXTENSIONS)}) in {list(paths)}')
    return files


def reconstruct_files(config: str, checkpoint: str, paths: Sequence[str], out: str, num_images: int = 8,
                      seed: int = 0) -> None:
    """Draw up to ``num_images`` pictures through a config's own pipeline and model into the file ``out``.

    Args:
        config (str): An FCMAE config.
        checkpoint (str): A checkpoint of its training, with decoder.
        paths (Sequence[str]): Picture files and folders.
        out (str): A PNG, a row a picture: original, masked, reconstruction, pasted.
        num_images (int): Defaults to 8.
        seed (int): Of crops and masks. Defaults to 0.
    """
    cfg = Config.fromfile(config)
    pipeline_cfg = cfg.train_dataloader.dataset.pipeline
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
        pipeline = Compose(pipeline_cfg)
    model.load_state_dict(unwrap(load_file(checkpoint)))
    samples = []
    for number, path in enumerate(list_pictures(paths)[:num_images]):
        with seeded(seed, 0, number):
            samples.append(pipeline(dict(img_path=path)))
    with torch.no_grad():
        Image.fromarray(draw_reconstructions(model, default_collate(samples))).save(out)
    print(f'{out}: {len(samples)} rows of original | masked | reconstruction of hidden cells | pasted together')
