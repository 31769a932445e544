"""Contestants of `speed.py`: our models and their peers on the same images, masks and, where possible, weights.

Weights are initialised such that no parameter is zero (an untrained GRN is the identity) and every layer preserves the
variance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.models.backbones import ConvNeXt
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.checkpoint import from_canonical
from mmconvnextv2.models.convnext_v2 import ARCHS, set_kernels
from mmconvnextv2.pretrain import FCMAE, MPMAE
from mmconvnextv2.pretrain.masking import num_visible, stack_visible_cells
from mmconvnextv2.pretrain.targets import build_targets

CELL = 32


@dataclass
class Contestant:
    """Model with a function for its loss; ``output`` is compared between contestants of equal weights."""

    model: nn.Module
    loss: Callable[[], Tensor]
    output: Callable[[], Tensor] = None

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-8, fused=True)

    @torch.no_grad()
    def forward(self):
        return self.loss()

    def forward_backward(self):
        self.loss().backward()
        self.model.zero_grad()

    def step(self):
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def randomize_weights(model, seed=0):
    """Initialise all parameters from a seed, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            nn.init.normal_(parameter, mean=float(name.endswith('weight')), std=0.3, generator=generator)
    return model


def random_images(batch, side, device, channels=3):
    images = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))
    return images.to(device, memory_format=torch.channels_last)


def samples(batch, side, mask_ratio, cell=CELL):
    """Sample masks, packed as by the pipeline."""
    random, cells = np.random.default_rng(1), (side // cell) ** 2
    return [
        DataSample(metainfo=dict(visible_cells=np.sort(random.permutation(cells)[: num_visible(cells, mask_ratio)])))
        for _ in range(batch)
    ]


def fcmae(size, execution, fused, batch, side, mask_ratio, device, bf16=False):
    """Build FCMAE of a size; ``fused=False`` runs its blocks layer by layer with torch's own operations."""
    model = (
        randomize_weights(
            FCMAE(
                backbone=dict(type='ConvNeXtV2', arch=size, out_indices=(3,), out_norm=False),
                neck=dict(type='FCMAEDecoder'),
                head=dict(type='FCMAEHead'),
                execution=execution,
            )
        )
        .to(device)
        .train()
    )
    if not fused:
        unfuse(model)
    images, masks = random_images(batch, side, device), samples(batch, side, mask_ratio)

    def loss():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model.loss(images, masks)['loss']

    @torch.no_grad()
    def output():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return loss(), *model.backbone(images, stack_visible_cells(masks, device), execution)

    return Contestant(model, loss, output)


def mpmae(config, execution, batch, side, mask_ratio, device):
    """Build MP-MAE of a recipe's config, with random images and targets, none of them missing."""
    from mmconvnextv2.utils.config import load_config

    cfg = load_config(config).model
    cfg.pop('type')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = randomize_weights(MPMAE(**{**cfg, 'execution': execution})).to(device).train()
    generator, targets = torch.Generator().manual_seed(2), {}
    for name, target in build_targets(cfg.head.targets).items():
        size = (side, side) if target.of_pixels else ()
        if target.source is None and target.has_classes:
            targets[name] = torch.randint(0, target.num_outputs, (batch, *size), generator=generator).to(device)
        elif target.source is None:
            targets[name] = torch.randn(batch, target.depth, *size, generator=generator).to(device)
    images = random_images(batch, side, device, model.backbone.in_channels)
    masks = samples(batch, side, mask_ratio, model.backbone.cell)
    return Contestant(model, lambda: model.loss(images, masks, targets)['loss'])


def unfuse(model):
    """Make every block run its layers one by one."""
    set_kernels(model, 'layers')


def spark(batch, side, device, bf16=False):
    """Build mmpretrain's SparK of ConvNeXt V2-T as in its recipe; it samples its own masks, at the same ratio."""
    config = get_config('mmpretrain::spark/spark_sparse-convnextv2-tiny_16xb256-amp-coslr-800e_in1k.py').model
    config.input_size = side
    config.backbone.drop_path_rate = 0.0
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config).to(device)
    images = random_images(batch, side, device)

    def loss():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model.loss(images, None)['loss']

    return Contestant(model.train(), loss)


def backbones(size, batch, side, device, bf16=False):
    """Build our backbone and two peers with the same weights.

    Ours comes in the variants of the peers: mmpretrain's has norms on its outputs, timm's does not.
    """
    weights = randomize_weights(ConvNeXtV2(size)).state_dict()
    plain = {name: value for name, value in weights.items() if not name.startswith('norm')}
    ours, bare = ConvNeXtV2(size), ConvNeXtV2(size, out_norm=False)
    ours.load_state_dict(weights)
    bare.load_state_dict(plain)
    peer = ConvNeXt(
        size if size in ConvNeXt.arch_settings else dict(ARCHS[size]),
        use_grn=True,
        layer_scale_init_value=0.0,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    )
    peer.load_state_dict(weights)
    models = {'ours': ours, 'mmpretrain': peer, 'ours, no output norms': bare, 'timm': timm_backbone(size, plain)}
    images = random_images(batch, side, device)
    for model in models.values():
        model.to(
            device, memory_format=torch.channels_last
        ).train()  # separate call, since mmpretrain's train() returns None
    return {name: _dense(model, images, bf16) for name, model in models.items()}


def timm_backbone(size, weights):
    """Build timm's feature extractor with canonical weights."""
    import timm

    model = timm.create_model(f'convnextv2_{size}', features_only=True)
    shapes = model.state_dict()  # small sizes have 1x1 convolutions instead of linear layers
    for name, value in from_canonical(weights, 'timm').items():
        name = name.replace('stages.', 'stages_', 1).replace('stem.', 'stem_', 1)
        shapes[name] = value.view_as(shapes[name])
    model.load_state_dict(shapes)
    return model


def _dense(model, images, bf16):
    def output():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(images)

    return Contestant(model, lambda: sum(one.float().square().mean() for one in output()), output)


def downstream(config, batch, side, device, backbone='ours', drop_path=False):
    """Build the detector or segmentor of a recipe, with our backbone or mmpretrain's, on random images.

    Losses of the two can be compared without the recipe's drop path.
    """
    from mmconvnextv2.commands.arguments import load_config
    from mmconvnextv2.commands.runner import revert_sync_batch_norm

    cfg = load_config(config)
    cfg.launcher = 'none'
    revert_sync_batch_norm(cfg)
    rate = cfg.model.backbone.get('drop_path_rate', 0.0) if drop_path else 0.0
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=rate)
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')  # it lists every initialised weight
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        model.init_weights()
        data = (_segmentation if cfg.default_scope == 'mmseg' else _detection)(batch, side)
    if backbone == 'mmpretrain':
        weights = model.backbone.state_dict()
        model.backbone = ConvNeXt(
            cfg.model.backbone.arch,
            drop_path_rate=rate,
            use_grn=True,
            layer_scale_init_value=0.0,
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
        )
        model.backbone.load_state_dict(weights)
    randomize_weights(model.backbone)
    model.to(device)
    model.train()

    def loss():
        torch.manual_seed(0)  # fixes the sampling of boxes
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            inputs = model.data_preprocessor(data, training=True)
            return model.parse_losses(model(**inputs, mode='loss'))[0]

    return Contestant(model, loss, loss)


def _detection(batch, side):
    from mmdet.testing import demo_mm_inputs

    return demo_mm_inputs(
        batch, image_shapes=[(3, side, side)] * batch, num_items=[8] * batch, num_classes=80, with_mask=True
    )


def _segmentation(batch, side):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    random = torch.Generator().manual_seed(1)
    inputs = [torch.randint(256, (3, side, side), generator=random, dtype=torch.uint8) for _ in range(batch)]
    labels = [torch.randint(150, (1, side, side), generator=random) for _ in range(batch)]
    meta = dict(img_shape=(side, side), ori_shape=(side, side))
    return dict(
        inputs=inputs, data_samples=[SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=meta) for label in labels]
    )
