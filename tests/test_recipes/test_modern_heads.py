"""DINO, DDQ-DETR, RTMDet and Mask2Former: optimizers, precision and schedules against independent sources.

Rates and decays are computed here from their definition, schedules and augmentation come from the upstream configs, and
models of the same weights without our fp32 classes are the reference in float32.
"""

import copy
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.engine.optimizers.layer_decay_optimizer_constructor import get_layer_id_for_convnext
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from narrow import dicts_of, make_batch, narrow_model
from torch import nn

from mmconvnextv2.commands.flops import build_on_meta
from mmconvnextv2.models.fp32_detection import FP32Conv2d, FP32RTMDetSepBNHead
from mmconvnextv2.models.fp32_transformers import FP32MultiScaleDeformableAttention
from mmconvnextv2.utils.config import import_scope, load_config

CONFIGS = Path(__file__).parents[2] / 'configs'
# One leaf per kind of head: learning rate, weight decay, rate of the layer decay, largest norm of the gradient
SETTINGS = {
    'dino/dino_convnextv2-t_4scale-12e_coco': (1e-4, 1e-4, 0.7, 0.1),
    'dino/dino_convnextv2-b_4scale-12e_coco': (1e-4, 1e-4, 0.8, 0.1),
    'ddq/ddq-detr_convnextv2-t_4scale-12e_coco': (2e-4, 0.05, 0.7, 0.1),
    'rtmdet/rtmdet-l_convnextv2-b_100e_coco': (1e-3, 0.05, 0.8, None),
    'mask2former/mask2former_convnextv2-t_lsj-50e_coco': (1e-4, 0.05, 0.7, 0.01),
    'mask2former/mask2former_convnextv2-l_lsj-100e_coco-panoptic': (1e-4, 0.05, 0.7, 0.01),
    'mask2former/mask2former_convnextv2-t_160k_ade20k-512x512': (1e-4, 0.05, 0.8, 0.01),
}
STEPPED = [name for name in SETTINGS if 'panoptic' not in name and not ('dino' in name and '-b_' in name)]
M2F = 'mask2former/mask2former_convnextv2'
UPSTREAM = {  # ours: theirs, and how many epochs or iterations it takes
    'dino/dino_convnextv2-b_4scale-12e_coco': ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco', 12),
    'dino/dino_convnextv2-b_4scale-36e_coco': ('mmdet::dino/dino-4scale_r50_8xb2-36e_coco', 36),
    'ddq/ddq-detr_convnextv2-b_4scale-12e_coco': ('mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco', 12),
    'rtmdet/rtmdet-l_convnextv2-b_100e_coco': ('mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco', 100),
    f'{M2F}-b_lsj-50e_coco': ('mmdet::mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco', 368750),
    f'{M2F}-b_lsj-50e_coco-panoptic': (
        'mmdet::mask2former/mask2former_swin-b-p4-w12-384_8xb2-lsj-50e_coco-panoptic',
        368750,
    ),
    f'{M2F}-l_lsj-100e_coco-panoptic': (
        'mmdet::mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic',
        737500,
    ),
    f'{M2F}-t_160k_ade20k-512x512': ('mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512', 160000),
    f'{M2F}-l_160k_ade20k-640x640': (
        'mmseg::mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640',
        160000,
    ),
}


def load(name):
    return load_config(str(CONFIGS / f'{name}.py'))


def decay_steps(name, num_blocks):
    """Count the decay steps of a backbone's parameter: stem below stage 1, ..., stage 4 a step below the heads; stage 3
    has a step per three blocks, and a downsampling layer belongs to the blocks after it."""
    part, stage, *rest = name.removeprefix('backbone.').split('.')
    steps_of_stage_3 = num_blocks // 3
    if part == 'downsample_layers':
        return (steps_of_stage_3 + 4, steps_of_stage_3 + 2, steps_of_stage_3 + 1, 1)[int(stage)]
    if part != 'stages':
        return 0
    return (steps_of_stage_3 + 3, steps_of_stage_3 + 2, steps_of_stage_3 + 1 - int(rest[0]) // 3, 1)[int(stage)]


def decayed_names(model):
    """Return the names of all kernels: of convolutions and linear layers, and of embeddings and attention that the
    upstream recipe does not exempt."""
    kernels = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            kernels.add(f'{name}.weight')
        if isinstance(module, nn.MultiheadAttention):
            kernels.add(f'{name}.in_proj_weight')
    if type(model).__name__ in ('FP32DINO', 'FP32DDQDETR'):
        return kernels | {'level_embed'}
    head = 'decode_head' if hasattr(model, 'decode_head') else 'panoptic_head'
    return kernels - {f'{head}.{name}.weight' for name in ('query_embed', 'query_feat', 'level_embed')}


@pytest.mark.parametrize('name', SETTINGS)
def test_rate_and_decay_of_every_parameter(name):
    """Each parameter has the learning rate of its depth, and only kernels are decayed: no norm, bias or GRN, and no
    query that upstream exempts. MMDetection's own numbering of ConvNeXt's layers gives the same rates."""
    lr, weight_decay, rate, max_norm = SETTINGS[name]
    cfg = load(name)
    model = build_on_meta(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert (wrapper.clip_grad_kwargs or {}).get('max_norm') == max_norm
    assert type(wrapper).__name__ == 'BF16OptimWrapper' and isinstance(wrapper.optimizer, torch.optim.AdamW)
    groups = {id(each): group for group in wrapper.optimizer.param_groups for each in group['params']}
    parameters, kernels = dict(model.named_parameters()), decayed_names(model)
    assert kernels - set(parameters) <= {key for key in kernels if '_convs.' in key}  # RTMDet shares convolutions
    assert len(groups) == len(parameters)
    num_blocks = len(model.backbone.stages[2])
    for key, parameter in parameters.items():
        group, steps = groups[id(parameter)], 0
        if key.startswith('backbone.'):
            steps = decay_steps(key, num_blocks)
            theirs = get_layer_id_for_convnext(key, num_blocks // 3 + 3)
            assert steps == num_blocks // 3 + 4 - theirs
        assert group['lr'] == pytest.approx(lr * rate**steps), key
        assert group['weight_decay'] == (weight_decay if key in kernels else 0.0), key
    assert any('.grn.' in key for key in parameters) and any('norm' in key for key in parameters)


@pytest.mark.parametrize('name', UPSTREAM)
def test_schedule_and_augmentation_are_upstream_s(name):
    """Length, batch, steps, queries and augmentation are those of the closest upstream config, apart from classes that
    check what they read; MMDetection's DINO has no warm-up."""
    cfg, (source, length) = load(name), UPSTREAM[name]
    theirs = get_config(f'{source}.py')
    assert length == (cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters)
    assert theirs.train_cfg.to_dict() == {key: cfg.train_cfg[key] for key in theirs.train_cfg}
    ours_steps, their_steps = (_last_scheduler(each) for each in (cfg, theirs))
    assert {key: ours_steps[key] for key in their_steps} == their_steps
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr.base_batch_size == (128 if 'rtmdet' in name else 16)
    for ours, upstream in zip(_queries(cfg.model), _queries(theirs.model)):
        assert ours == upstream
    for split in ('train', 'val'):
        steps, upstream = (each[f'{split}_dataloader'].dataset.pipeline for each in (cfg, theirs))
        assert len(steps) == len(upstream)
        for ours, step in zip(steps, upstream):
            known = dict(ours, type=ours.type.replace('LoadCheckedLabels', 'LoadAnnotations'))
            known.pop('num_classes', None)
            assert known == dict(step), (ours, step)


def _last_scheduler(cfg):
    schedulers = cfg.param_scheduler
    return (schedulers[-1] if isinstance(schedulers, list) else schedulers).to_dict()


def _queries(model):
    return [part.get('num_queries') for part in (model, model.get('panoptic_head', {}), model.get('decode_head', {}))]


@pytest.mark.parametrize('name', STEPPED)
def test_trains_a_step_in_bf16(name):
    """With the same weights and seed, the loss in float32 is bitwise upstream's. Under bf16 autocast it is finite and
    within 5 %, deformable attention is computed in float32 inside, other layers in bf16, every stage of the backbone
    moves, and the model predicts."""
    cfg = load(name)
    cfg.model.backbone.drop_path_rate = 0.0  # which paths are dropped depends on the dtype
    plain = _without_fp32_classes(copy.deepcopy(cfg.model))
    import_scope(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(narrow_model(cfg.model)).train()
        model.init_weights()
        batch = make_batch(cfg.default_scope, 'panoptic_head' in cfg.model, side=64)
        data = model.data_preprocessor(batch, training=True)
        stock = MODELS.build(narrow_model(plain)).train()
        stock.load_state_dict(model.state_dict())
        expected, exact = (_loss(each, data) for each in (stock, model))
        torch.testing.assert_close(exact, expected, rtol=0, atol=0)
        dtypes = _record_dtypes(model)
        before = [stage[0].depthwise_conv.weight.detach().clone() for stage in model.backbone.stages]
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        with wrapper.optim_context(model):
            loss = _loss(model, data)
        dtypes = {kind: set(seen) for kind, seen in dtypes.items()}  # of this step alone
        wrapper.update_params(loss)
        with torch.no_grad():
            predicted = model.eval()(**model.data_preprocessor(batch), mode='predict')
    assert torch.isfinite(loss) and len(predicted) == 2
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    inside = 'distances' if 'rtmdet' in name else 'attention'
    assert dtypes == {'other': {torch.bfloat16}, inside: {torch.float32}}
    for old, stage in zip(before, model.backbone.stages):
        assert (stage[0].depthwise_conv.weight - old).abs().sum() > 0


def _without_fp32_classes(value):
    """Replace our classes in a config by those that they subclass."""
    for part in dicts_of(value):
        if str(part.get('type', '')).rpartition('.')[2].startswith('FP32'):
            part['type'] = part['type'].replace('FP32', '')
    return value


def _record_dtypes(model):
    """Return a dict that will map kinds of layers to the dtypes that they compute in: deformable attention, RTMDet's
    last convolution of the box branch, and a layer that follows autocast."""
    dtypes, other = defaultdict(set), None
    for name, module in model.named_modules():
        if isinstance(module, MultiScaleDeformableAttention):
            layers = [('attention', each) for each in module.children() if isinstance(each, nn.Linear)]
        elif isinstance(module, FP32Conv2d):
            layers = [('distances', module)]
        elif (
            other is None
            and isinstance(module, (nn.Conv2d, nn.Linear))
            and ('neck.' in name or 'decoder.layers.0.ffn' in name)
        ):
            layers = [('other', other := module)]
        else:
            continue
        for kind, layer in layers:
            layer.register_forward_hook(lambda module, inputs, output, kind=kind: dtypes[kind].add(output.dtype))
    return dtypes


def _loss(model, data):
    torch.manual_seed(1)  # noise of denoising queries, sampled points, drop path
    return model.parse_losses(model(**data, mode='loss'))[0]


def test_attention_in_float32():
    """Under bf16 autocast the attention gives bitwise what it gives in float32; the stock class does not."""
    torch.manual_seed(0)
    ours = FP32MultiScaleDeformableAttention(32, 4, 2, dropout=0.0, batch_first=True)
    stock = MultiScaleDeformableAttention(32, 4, 2, dropout=0.0, batch_first=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)
    stock.load_state_dict(ours.state_dict())
    shapes = torch.tensor([[20, 30], [10, 15]])
    starts = torch.tensor([0, 600])
    query = torch.randn(2, 7, 32).bfloat16()
    value = torch.randn(2, 750, 32).bfloat16()
    points = torch.rand(2, 7, 2, 2)

    def attend(module, query, value):
        return module(query, value=value, reference_points=points, spatial_shapes=shapes, level_start_index=starts)

    exact = attend(stock, query.float(), value.float())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half, theirs = (attend(module, query, value) for module in (ours, stock))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0, atol=0)
    assert (theirs.float() - exact).abs().max() > 1e-2


def test_rtmdet_distances_in_float32():
    """Under bf16 autocast, distances are the exponential of a float32 convolution of the head's features."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = FP32RTMDetSepBNHead(
            6,
            16,
            feat_channels=16,
            stacked_convs=1,
            norm_cfg=dict(type='GN', num_groups=4),
            exp_on_reg=True,
            anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8]),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            with_objectness=False,
        )
    (conv,) = head.rtm_reg
    nn.init.normal_(conv.weight, std=0.5)
    seen = []
    conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (scores,), (distances,) = head([torch.randn(2, 16, 5, 5)])
    assert scores.dtype == distances.dtype == torch.float32
    expected = nn.functional.conv2d(seen[0].float(), conv.weight, conv.bias).exp() * 8
    torch.testing.assert_close(distances, expected, rtol=0, atol=0)
    assert (distances.bfloat16().float() - distances).abs().max() > 0
