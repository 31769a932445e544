"""Whole narrow models of every framework around a ConvNeXtV2, and mmengine's runner around them."""

from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from small_models import NARROW
from torch.utils.data import DataLoader

SCOPES = dict(detector='mmdet', segmentor='mmseg', classifier='mmpretrain', pretraining='mmpretrain')


def config_of(kind, **backbone):
    """The config of a model whose backbone has these settings."""
    backbone = dict(type='ConvNeXtV2', arch=NARROW, **backbone)
    if kind == 'segmentor':
        head = dict(
            type='FCNHead',
            in_channels=NARROW['channels'][3],
            channels=8,
            in_index=3,
            num_convs=1,
            num_classes=3,
            norm_cfg=dict(type='BN'),
        )
        return dict(type='EncoderDecoder', backbone=backbone, decode_head=head)
    if kind == 'classifier':
        backbone.update(out_indices=(3,), gap_before_final_norm=True)
        return dict(
            type='ImageClassifier',
            backbone=backbone,
            head=dict(type='LinearClsHead', in_channels=NARROW['channels'][3], num_classes=3),
        )
    if kind == 'pretraining':
        import mmconvnextv2.pretrain  # noqa: F401

        backbone.update(out_indices=(3,), out_norm=False)
        return dict(
            type='FCMAE', backbone=backbone, neck=dict(type='FCMAEDecoder', channels=12), head=dict(type='FCMAEHead')
        )
    model = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    model.backbone, model.neck.in_channels, model.neck.out_channels = backbone, list(NARROW['channels']), 8
    model.rpn_head.update(in_channels=8, feat_channels=8)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        model.roi_head[name].out_channels = 8
    model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16, num_classes=3)
    model.roi_head.mask_head.update(in_channels=8, conv_out_channels=8, num_classes=3)
    return model


def build(kind, **backbone):
    """Build a model in the scope of its framework; ``kind`` is a key of ``SCOPES``."""
    if kind == 'detector':
        from mmdet.utils import register_all_modules
    elif kind == 'segmentor':
        from mmseg.utils import register_all_modules
    else:
        from mmpretrain.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(SCOPES[kind]):
        return MODELS.build(config_of(kind, **backbone))


def make_runner(model, work_dir, epochs=0, **kwargs):
    """A runner that builds, initialises and resumes, and trains for no iteration unless there is an epoch to go."""
    return Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader([0]),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        cfg=kwargs,
        **kwargs,
    )
