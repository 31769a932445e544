"""A packed pretraining step does no work for masked cells and never waits for the GPU."""

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample
from small_models import NARROW
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmconvnextv2.models.convnext_v2 import set_kernels
from mmconvnextv2.models.execution import mask_to_visible_cells
from mmconvnextv2.ops.matmul import HAS_INNER_PRODUCT
from mmconvnextv2.pretrain import FCMAE
from mmconvnextv2.pretrain.masking import masked_cells_of

CHANNELS, DEPTHS, WIDTH = NARROW['channels'], NARROW['depths'], 12
BATCH, CELLS, VISIBLE = 2, 6, 2  # of 2 x 3 cells
SITES = [VISIBLE * patch**2 for patch in (8, 4, 2, 1)]  # per image, by stage
aten = torch.ops.aten
READS_VALUES = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.nonzero_static,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.item,
}
LEFT_FACTOR = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}  # of matrix products, which argument
if HAS_INNER_PRODUCT:
    LEFT_FACTOR[torch.ops.mkldnn._linear_pointwise] = 0


class NoSync(TorchDispatchMode):
    """Refuse every operation that reads values to know its result on the host or the shape of its output."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        indices = arguments[1] if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else ()
        if function.overloadpacket in READS_VALUES or any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices
        ):
            raise RuntimeError(f'{function} waits for the GPU')
        if function.overloadpacket is aten.repeat_interleave and function is not aten.repeat_interleave.self_int:
            raise RuntimeError(f'{function} waits for the GPU')
        return function(*arguments, **(options or {}))


class Products(TorchDispatchMode):
    """Count multiplications of matrix products, and list the input shapes of convolutions."""

    def __init__(self):
        super().__init__()
        self.count, self.convolved = 0, []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function.overloadpacket in LEFT_FACTOR:
            left = arguments[LEFT_FACTOR[function.overloadpacket]]
            self.count += result.numel() * left.shape[-1]
        if function.overloadpacket is aten.convolution:
            self.convolved.append(tuple(arguments[0].shape))
        return result


def make_model(execution='packed', fused=True):
    torch.manual_seed(0)
    model = FCMAE(
        backbone=dict(type='ConvNeXtV2', arch=NARROW, out_indices=(3,), out_norm=False),
        neck=dict(type='FCMAEDecoder', channels=WIDTH),
        head=dict(type='FCMAEHead'),
        execution=execution,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    set_kernels(model, None if fused else 'layers')
    return model


def make_batch():
    generator = np.random.default_rng(0)
    samples = [
        DataSample(metainfo=dict(visible_cells=np.sort(generator.permutation(CELLS)[:VISIBLE]))) for _ in range(BATCH)
    ]
    return torch.from_numpy(generator.standard_normal((BATCH, 3, 64, 96), dtype=np.float32)), samples


class Step(nn.Module):
    """The loss as a function of tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, visible_cells):
        decoded = self.model.neck(self.model.backbone(images, visible_cells, self.model.execution), visible_cells)
        return self.model.head.loss(decoded, images, masked_cells_of(visible_cells, CELLS))


def make_step(**kwargs):
    images, samples = make_batch()
    return Step(make_model(**kwargs)), images, torch.from_numpy(np.stack([one.visible_cells for one in samples]))


@pytest.mark.parametrize('fused', (True, False))
def test_step_never_reads_a_value(fused):
    """Forward, loss and backward of a packed model run without .item(), nonzero, boolean indices or any other operation
    that waits for values, and give every parameter a gradient; each of these is caught where it occurs."""
    model, (images, samples) = make_model(fused=fused), make_batch()
    with NoSync():
        loss = model.loss(images, samples)['loss']
        loss.backward()
    assert loss.isfinite() and all(parameter.grad.any() for parameter in model.parameters())
    mask = images[:, 0] > 0
    for wait in (
        loss.item,
        mask.nonzero,
        lambda: images[:, 0][mask],
        lambda: images[:, 0].masked_select(mask),
        lambda: bool(loss > 0),
        lambda: images[:, 0].index_put((mask,), loss.detach()),
        mask.unique,
        lambda: torch.arange(2).repeat_interleave(torch.tensor([1, 2])),
    ):
        with NoSync(), pytest.raises(RuntimeError, match='waits for the GPU'):
            wait()


@pytest.mark.parametrize('execution', ('packed', 'masked'))
def test_step_runs_without_values(execution):
    """Loss and gradients trace on tensors that have shapes and no values, where an operation whose result depends on
    values raises, as the conversion of a bool mask does."""
    with FakeTensorMode():
        step = Step(make_model(execution))
        loss = step(torch.empty(BATCH, 3, 64, 96), torch.empty(BATCH, VISIBLE, dtype=torch.long))
        loss.backward()
        assert all(parameter.grad.shape == parameter.shape for parameter in step.parameters())
        with pytest.raises(DynamicOutputShapeException):
            torch.empty(BATCH, 2, 3, dtype=torch.bool).nonzero()


def test_step_is_one_graph():
    """torch.compile takes the packed step as one graph without a break, backward included, and torch.export too; both
    give the eager loss and the first the eager gradients."""
    step, images, visible = make_step()
    wanted = step(images, visible)
    gradients = torch.autograd.grad(wanted, list(step.parameters()))
    loss = torch.compile(step, fullgraph=True, backend='eager')(images, visible)
    torch.testing.assert_close(loss, wanted)
    for one, other in zip(torch.autograd.grad(loss, list(step.parameters())), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(step, (images, visible))
    torch.testing.assert_close(exported.module()(images, visible), wanted)


ENCODER = BATCH * sum(depth * sites * 8 * width**2 for depth, sites, width in zip(DEPTHS, SITES, CHANNELS))
DOWNSAMPLING = BATCH * sum(
    sites * 4 * before * after for sites, before, after in zip(SITES[1:], CHANNELS, CHANNELS[1:])
)  # packed: products too


def expected_products():
    """Multiplications of matrix products: encoder at visible sites, decoder block everywhere, prediction at masked."""
    decoder = BATCH * CELLS * 8 * WIDTH**2 + BATCH * (CELLS - VISIBLE) * WIDTH * 32 * 32 * 3
    return ENCODER + DOWNSAMPLING + decoder


@pytest.mark.parametrize('fused', (True, False))
def test_linears_multiply_visible_sites_alone(fused):
    """The matrix products of a packed step are those of K cells in the encoder and of the masked cells in the
    prediction, no more, and twice as many in the backward; masked visits all sites."""
    step, images, visible = make_step(fused=fused)
    with Products() as forward:
        loss = step(images, visible)
    with Products() as backward:
        loss.backward()
    assert forward.count == expected_products() and backward.count == 2 * forward.count
    with Products() as masked:
        make_step(fused=fused, execution='masked')[0](images, visible)
    assert masked.count - forward.count == ENCODER * (CELLS - VISIBLE) // VISIBLE - DOWNSAMPLING


def test_layers_see_visible_sites_alone():
    """Hooks count the rows: every linear and norm of the encoder gets B x K x p x p, the prediction B x M; the stem
    convolves B x K cells, the depthwise convolution of the first stage their windows, and that of the others alone
    walks over the whole map."""
    step, images, visible = make_step()
    rows = {}
    for name, module in step.model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: rows.update({name: inputs[0].shape[:-1].numel()})
            )
    with Products() as products:
        step(images, visible)
    for stage, sites in enumerate(SITES):
        seen = [count for name, count in rows.items() if name.startswith(f'backbone.stages.{stage}.')]
        assert len(seen) == 3 * DEPTHS[stage] and set(seen) == {BATCH * sites}
    assert rows['head.pred'] == BATCH * (CELLS - VISIBLE)
    cells, maps = BATCH * VISIBLE, [(BATCH, width, 64 // s, 96 // s) for width, s in zip(CHANNELS, (4, 8, 16, 32))]
    windows = (cells, CHANNELS[0], 8 + 6, 8 + 6)
    assert products.convolved == [
        (cells, 3, 32, 32),
        windows,
        maps[1],
        maps[2],
        maps[2],
        maps[3],
        (BATCH, 10, 2, 3),
        (BATCH, WIDTH, 2, 3),
    ]


def test_conversion_of_masks_waits():
    """The one helper that turns a bool mask into cells says that it waits, and does; a step never calls it."""
    with NoSync(), pytest.raises(RuntimeError, match='waits for the GPU'):
        mask_to_visible_cells(torch.eye(2, dtype=torch.bool)[None])
