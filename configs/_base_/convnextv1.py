# ConvNeXt V1 (arXiv 2201.03545): the backbone without GRN and with LayerScale, and what depends on its size.
# Addresses are those of the official weights (MIT). Downstream recipes start LayerScale at 1, and then load it.
v1 = dict(response_norm=None, layer_scale_init_value=1.0)
weights_v1 = 'https://dl.fbaipublicfiles.com/convnext/'
sizes_v1 = dict(
    tiny=dict(
        arch='tiny', channels=[96, 192, 384, 768],
        in1k=weights_v1 + 'convnext_tiny_1k_224.pth', in22k=weights_v1 + 'convnext_tiny_22k_224.pth'),
    small=dict(
        arch='small', channels=[96, 192, 384, 768],
        in1k=weights_v1 + 'convnext_small_1k_224.pth', in22k=weights_v1 + 'convnext_small_22k_224.pth'),
    base=dict(
        arch='base', channels=[128, 256, 512, 1024],
        in1k=weights_v1 + 'convnext_base_1k_224.pth', in22k=weights_v1 + 'convnext_base_22k_224.pth'),
    large=dict(
        arch='large', channels=[192, 384, 768, 1536],
        in1k=weights_v1 + 'convnext_large_1k_224_ema.pth', in22k=weights_v1 + 'convnext_large_22k_224.pth'),
    xlarge=dict(
        arch='xlarge', channels=[256, 512, 1024, 2048], in22k=weights_v1 + 'convnext_xlarge_22k_224.pth'),
)
