"""Our backbone in other models of MMDetection and MMSegmentation: the swap configs build and train a step."""

from glob import glob
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.utils.config import import_scope

ROOT = Path(__file__).parents[2]
SWAPS = sorted(Path(path) for path in glob(str(ROOT / 'configs' / 'swaps' / '*.py')))
ARCH, CHANNELS = dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32)), [8, 16, 24, 32]
FEW = dict(num_layers=1)


def narrow(cfg):
    """Make the model small by its own keys: widths of the backbone, layers of transformers, queries."""
    model = cfg.model
    model.backbone.update(arch=ARCH, init_cfg=None)
    for reader in ('neck', 'panoptic_head', 'decode_head'):
        if 'in_channels' in model.get(reader, {}):
            model[reader].in_channels = CHANNELS[-len(model[reader].in_channels) :]
    for part in (model, model.get('panoptic_head', {}), model.get('decode_head', {})):
        if 'num_queries' in part:
            part.num_queries = 20
    if model.type == 'DINO':
        model.encoder.update(FEW)
        model.decoder.update(FEW)
        model.dn_cfg.group_cfg.num_dn_queries = 5
    head = model.get('panoptic_head') or model.get('decode_head')
    if head is not None:
        head.pixel_decoder.encoder.update(FEW)
        head.transformer_decoder.num_layers = 3
        (head.get('train_cfg') or model.train_cfg).num_points = 64
    return model


def make_batch(scope, with_mask):
    """Return two images of 96 x 128 with labels."""
    if scope == 'mmdet':
        return demo_mm_inputs(
            batch_size=2, image_shapes=[(3, 96, 128)] * 2, num_items=[2, 3], num_classes=80, with_mask=with_mask
        )
    size = dict(img_shape=(96, 128), ori_shape=(96, 128))
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 96, 128))), metainfo=size) for _ in range(2)
    ]
    return dict(inputs=[torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)], data_samples=samples)


@pytest.mark.parametrize('path', SWAPS, ids=lambda path: path.stem)
def test_swap_trains_a_step(path):
    """The upstream model reads our widths, its loss is finite, its gradient reaches every stage of our backbone, and it
    predicts."""
    cfg = Config.fromfile(str(path))
    import_scope(cfg)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(narrow(cfg)).train()
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
    """The swap is six statements, colours are those that the weights were trained on, and the full size builds."""
    statements = [line for line in path.read_text().splitlines() if line and line[0] not in ' #)']
    assert len(statements) <= 6
    cfg = Config.fromfile(str(path))
    import_scope(cfg)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb and preprocessor.mean[0] == 123.675
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('im1k/convnextv2_tiny_1k_224_ema.pt')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) > 27e6
