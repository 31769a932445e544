"""Our backbone in other models of MMDetection and MMSegmentation: the swap configs build and train a step."""

from glob import glob
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from narrow import make_batch, narrow_model

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.utils.config import import_scope
from mmconvnextv2.utils.public_models import find_config

ROOT = Path(__file__).parents[2]
SWAPS = sorted(Path(path) for path in glob(str(ROOT / 'configs' / 'swaps' / '*.py')))


@pytest.mark.parametrize('path', SWAPS, ids=lambda path: path.stem)
def test_swap_trains_a_step(path):
    """The upstream model reads our widths, its loss is finite, its gradient reaches every stage of our backbone, and it
    predicts."""
    cfg = Config.fromfile(str(path))
    import_scope(cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(narrow_model(cfg.model)).train()
        model.init_weights()  # DINO leaves parameters in memory as it was found until then
        assert type(model.backbone) is ConvNeXtV2
        data = model.data_preprocessor(make_batch(cfg.default_scope, 'panoptic_head' in cfg.model), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        with torch.no_grad():
            given = model.data_preprocessor(make_batch(cfg.default_scope, 'panoptic_head' in cfg.model))
            predicted = model.eval()(**given, mode='predict')
    assert torch.isfinite(loss) and len(predicted) == 2
    if cfg.default_scope == 'mmdet':
        assert all(torch.isfinite(one.pred_instances.scores).all() for one in predicted if 'pred_instances' in one)
    else:
        assert [one.pred_sem_seg.shape for one in predicted] == [(96, 128)] * 2
    for stage in model.backbone.stages:
        assert stage[0].depthwise_conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('path', SWAPS, ids=lambda path: path.stem)
def test_swap_is_short(path):
    """The swap is six statements, colours are those that the weights were trained on, the full size builds, and the
    recipe that the file names exists and is the one that the tools find by name."""
    statements = [line for line in path.read_text().splitlines() if line and line[0] not in ' #)']
    assert len(statements) <= 6
    recipe = path.parent / path.read_text().split('The recipe is ')[1].split('.py')[0].rstrip('.')
    assert recipe.with_suffix('.py').is_file()
    assert recipe.name != path.stem or Path(find_config(path.stem)).parent.name != 'swaps'
    cfg = Config.fromfile(str(path))
    import_scope(cfg)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb and preprocessor.mean[0] == 123.675
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('im1k/convnextv2_tiny_1k_224_ema.pt')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) > 27e6
