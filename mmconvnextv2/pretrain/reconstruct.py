"""Reconstruction pictures from a checkpoint, for pictures of one's own."""
from typing import Sequence

import torch
from mmengine.dataset import Compose, default_collate
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from PIL import Image

from ..checkpoint import unwrap
from ..pictures import list_pictures
from ..recipes import read_config
from ..safe_loading import load_file
from .data import seeded
from .hooks import draw_reconstructions


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
    cfg = read_config(config)
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
