"""Layer decay: complete tables of (name, learning-rate scale, weight decay) against independent computations."""

import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.engine.layer_decay import LayerDecayOptimWrapperConstructor

DEPTHS = dict(atto=(2, 2, 6, 2), tiny=(3, 3, 9, 3), base=(3, 3, 27, 3))
WIDTHS = dict(atto=40, tiny=96, base=128)


class Model(nn.Module):
    """A backbone, a head with a vector, and a mask token, as a detector or a pretraining algorithm has them."""

    def __init__(self, arch):
        super().__init__()
        self.backbone = ConvNeXtV2(arch)
        self.neck = nn.Linear(4, 2)
        self.mask_token = nn.Parameter(torch.zeros(1, 4, 1, 1))


def build(model, weight_decay=0.05, **paramwise_cfg):
    """Build the wrapper through MMEngine and return {parameter name: (scale, weight decay)} and the groups."""
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=2.0, weight_decay=weight_decay),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise_cfg,
        ),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    table = {names[id(p)]: (group['lr'] / 2.0, group['weight_decay']) for group in groups for p in group['params']}
    return table, groups


def steps_below_head(depths, kind):
    """Written from the description: list every block, walk it from the head to the stem, count the steps down."""
    blocks = [(stage, block) for stage in range(4) for block in range(depths[stage])]
    if kind == 'layer_wise':
        units = [[block] for block in blocks]
    else:
        stage_3 = [block for block in blocks if block[0] == 2]
        triples = [stage_3[i : i + 3] for i in range(0, len(stage_3), 3)]
        units = [
            [b for b in blocks if b[0] == 0],
            [b for b in blocks if b[0] == 1],
            *triples,
            [b for b in blocks if b[0] == 3],
        ]
    return {block: step for step, unit in enumerate(reversed(units), start=1) for block in unit}, len(units)


def expected_scale(name, depths, kind, rate):
    steps, num_units = steps_below_head(depths, kind)
    if not name.startswith(('backbone.stages', 'backbone.downsample')):
        return 1.0
    stage, index = (int(part) for part in name.split('.')[2:4])
    if 'downsample' not in name:
        return rate ** steps[stage, index]
    if stage == 0 and kind == 'group_wise':
        return rate ** (num_units + 1)
    return rate ** steps[stage, 0]


@pytest.mark.parametrize('kind', ['layer_wise', 'group_wise'])
@pytest.mark.parametrize('arch', ['atto', 'tiny', 'base'])
def test_table_matches_the_description(arch, kind):
    """Every parameter of the published sizes has the scale and the weight decay that the paper's grouping gives."""
    with torch.device('meta'):
        model = Model(arch)
    table, _ = build(model, decay_rate=0.8, decay_type=kind)
    assert table.keys() == dict(model.named_parameters()).keys()
    for name, (scale, weight_decay) in table.items():
        kernel = (
            name.endswith('.weight')
            and '.norm' not in name
            and not (
                name.startswith('backbone.downsample_layers.0.1')
                or any(name.startswith(f'backbone.downsample_layers.{s}.0') for s in (1, 2, 3))
                or 'backbone.norm' in name
            )
        )
        assert weight_decay == (0.05 if kernel else 0.0), name
        assert math.isclose(scale, expected_scale(name, DEPTHS[arch], kind, 0.8)), name


def test_small_table_written_by_hand():
    """For depths 1-1-4-1 the complete list of scales of both kinds is the one written here, by hand."""
    model = Model(dict(depths=[1, 1, 4, 1], channels=[8, 16, 32, 64]))
    powers = {  # prefix: (exponent layer_wise, exponent group_wise); 7 blocks, 5 groups
        'downsample_layers.0': (7, 6),
        'stages.0.0': (7, 5),
        'downsample_layers.1': (6, 4),
        'stages.1.0': (6, 4),
        'downsample_layers.2': (5, 3),
        'stages.2.0': (5, 3),
        'stages.2.1': (4, 3),
        'stages.2.2': (3, 3),
        'stages.2.3': (2, 2),
        'downsample_layers.3': (1, 1),
        'stages.3.0': (1, 1),
    }
    expected_rows = {}
    for prefix, exponents in powers.items():
        stage = int(prefix.split('.')[1])
        if 'stages' in prefix:
            leaves = [
                f'{layer}.{kind}'
                for layer in ('depthwise_conv', 'norm', 'pointwise_conv1', 'pointwise_conv2')
                for kind in ('weight', 'bias')
            ] + ['grn.gamma', 'grn.beta']
            kernels = {'depthwise_conv.weight', 'pointwise_conv1.weight', 'pointwise_conv2.weight'}
        else:
            leaves = [f'{i}.{kind}' for i in (0, 1) for kind in ('weight', 'bias')]
            kernels = {'0.weight'} if stage == 0 else {'1.weight'}
        for leaf in leaves:
            expected_rows[f'backbone.{prefix}.{leaf}'] = (exponents, 0.05 if leaf in kernels else 0.0)
    for name in ('mask_token', 'neck.bias', *(f'backbone.norm{i}.{k}' for i in range(4) for k in ('weight', 'bias'))):
        expected_rows[name] = ((0, 0), 0.0)
    expected_rows['neck.weight'] = ((0, 0), 0.05)
    for column, kind in enumerate(('layer_wise', 'group_wise')):
        table, _ = build(model, decay_rate=0.5, decay_type=kind)
        assert table == {name: (0.5 ** row[0][column], row[1]) for name, row in expected_rows.items()}


@pytest.mark.parametrize('kind, arch', [('stage_wise', 'tiny'), ('stage_wise', 'small'), ('layer_wise', 'small')])
def test_rates_of_convnext_v1(kind, arch):
    """Every parameter of a ConvNeXt V1 has the learning rate that MMSegmentation's constructor gives it, from which the
    published rates come: their ``layer_wise`` is ``group_wise`` here. Weight decay differs for none."""
    pytest.importorskip('mmseg.engine.optimizers')  # registers the constructor
    with torch.device('meta'):
        model = nn.Module()
        model.backbone = ConvNeXtV2(arch, response_norm=None, layer_scale_init_value=1.0)
        model.decode_head = nn.Conv2d(4, 2, 1)
    table, _ = build(model, decay_rate=0.9, decay_type='group_wise' if kind == 'layer_wise' else kind)
    theirs = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=2.0, weight_decay=0.05),
            constructor='mmseg.LearningRateDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=0.9, decay_type=kind, num_layers=6 if arch == 'tiny' else 12),
        ),
    ).optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = {names[id(p)]: (group['lr'] / 2.0, group['weight_decay']) for group in theirs for p in group['params']}
    assert table.keys() == wanted.keys()
    for name, settings in wanted.items():
        assert table[name] == pytest.approx(settings), name


def test_equal_settings_share_one_group():
    """No two groups agree in learning rate and weight decay, and every trainable parameter is in exactly one."""
    model = Model('atto')
    model.backbone.stages[0].requires_grad_(False)
    table, groups = build(model, decay_rate=0.9, decay_type='group_wise')
    assert len({(group['lr'], group['weight_decay']) for group in groups}) == len(groups)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(table) == sorted(trainable) and sum(len(group['params']) for group in groups) == len(trainable)
    assert len(build(model, decay_rate=1.0)[1]) == 2


def test_custom_keys():
    """The longest matching key wins, lr_mult multiplies the layer's scale, decay_mult replaces the exemption."""
    keys = {'neck': dict(lr_mult=10.0), 'neck.bias': dict(decay_mult=2.0), 'stages.3': dict(lr_mult=3.0)}
    table, _ = build(Model('atto'), decay_rate=0.5, decay_type='group_wise', custom_keys=keys)
    assert table['neck.weight'] == (10.0, 0.05) and table['neck.bias'] == (1.0, 0.1)
    assert table['backbone.stages.3.0.norm.bias'] == (1.5, 0.0)


@pytest.mark.parametrize(
    'paramwise_cfg, word',
    [
        (dict(decay_rate=0.0), 'decay_rate'),
        (dict(decay_rate=1.5), 'decay_rate'),
        (dict(decay_type='block_wise'), 'block_wise'),
        (dict(layer_decay_rate=0.9), 'layer_decay_rate'),
    ],
)
def test_bad_settings_are_named(paramwise_cfg, word):
    """A wrong value or key raises ValueError that names it."""
    with pytest.raises(ValueError, match=word):
        LayerDecayOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=1.0)), paramwise_cfg)


def test_model_without_depths_is_refused():
    """A model whose backbone cannot say its depths raises ValueError that names its class."""
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayOptimWrapperConstructor')
    with pytest.raises(ValueError, match='Linear'):
        constructor(dict(optimizer=dict(type='SGD', lr=1.0)), dict(decay_rate=0.9))(nn.Linear(2, 2))


def test_first_adamw_step_moves_by_the_scale():
    """With weight decay off, the first AdamW step moves each weight by its scale times the learning rate."""
    model = Model(dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64])).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    table, groups = build(model, weight_decay=0.0, decay_rate=0.5, decay_type='layer_wise')
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(groups).step()
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 2.0 * table[name][0]), rtol=1e-6, atol=0.0)
