# The backbone of dense recipes; bases read it as _base_.backbone, leaves set arch, drop path and start.
backbone = dict(
    type='ConvNeXtV2',
    arch='base',
    drop_path_rate=0.4,
    frozen_stages=0,
    with_cp=False,
    init_cfg=dict(type='ConvNeXtV2Pretrained', checkpoint=None))
