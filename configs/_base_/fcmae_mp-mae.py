# MP-MAE pretraining: FCMAE with many bands and many targets, as MMEarth (arXiv 2405.02771; settings of its code,
# vishalned/MMEarth-train, TRAINING.md and MODALITIES.py). Samples are files or folders of named arrays
# (docs/many_bands.md). Below, images are only scaled to reflectance and other targets not at all: measure mean and std
# of your data as that page says.
_base_ = './fcmae.py'
bands, cell, image_size = 12, 16, 112  # MMEarth's other setting is cell 8, image_size 56
num_epochs = 200

inputs = dict(sentinel2=bands)
targets = dict(
    sentinel2=dict(type='PixelValues', channels=bands, source='inputs', norm_cell=True),
    sentinel1=dict(type='PixelValues', channels=8, optional=True),
    aster=dict(type='PixelValues', channels=2, optional=True),
    canopy_height_eth=dict(type='PixelValues', channels=2, no_data=255, optional=True),
    dynamic_world=dict(type='PixelClasses', labels=[1, 2, 3, 4, 5, 6, 7, 8, 9], ignore_index=0, optional=True),
    esa_worldcover=dict(
        type='PixelClasses', labels=[10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100], ignore_index=0, optional=True),
    biome=dict(type='ImageClasses', num_classes=14, ignore_index=255, optional=True),
    eco_region=dict(type='ImageClasses', num_classes=846, ignore_index=65535, optional=True),
    era5=dict(type='ImageValues', channels=12, optional=True),
    lat=dict(type='ImageValues', channels=2, optional=True),
    lon=dict(type='ImageValues', channels=2, optional=True),
    month=dict(type='ImageValues', channels=2, optional=True))

model = dict(
    type='MPMAE',
    data_preprocessor=dict(
        _delete_=True, type='FCMAEDataPreprocessor', mean=[0.] * bands, std=[10000.] * bands, no_data=0),
    backbone=dict(in_channels=bands, stem=dict(type='ConvStem', stride=cell // 8)),
    head=dict(_delete_=True, type='MultiTargetHead', targets=targets, pool='decoded'),
    weighting='uncertainty')

train_pipeline = [
    dict(type='LoadNamedArrays'),
    dict(type='RandomCrop', crop_size=image_size),
    dict(type='SplitNamedArrays'),
    dict(type='FCMAEMaskGenerator', mask_ratio=0.6, cell=cell),
    dict(
        type='PackNamedArrays',
        meta_keys=('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'visible_cells', 'cell_order', 'cell_size'))]
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='NamedArrays',
        data_root='data/mmearth/train',
        inputs=inputs,
        targets=targets,
        pipeline=train_pipeline))
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [_base_.warmup, dict(_base_.cosine, end=num_epochs)]
custom_hooks = [dict(type='ReconstructionHook', interval=10, channels=(3, 2, 1))]  # B4, B3 and B2 as red, green, blue
