"""Half precision changes rounding and nothing else: no overflow, the same loss curve, exact statistics."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from mmpretrain.structures import DataSample
from torch import nn

from mmconvnextv2 import GRN, ConvNeXtV2Block, FP16OptimWrapper
from mmconvnextv2.datasets.synthetic.scenes import render_scene
from mmconvnextv2.models.execution import get_execution
from mmconvnextv2.models.response_norms import response_scale
from mmconvnextv2.ops.grid import Grid
from mmconvnextv2.ops.response_mlp import fused_response_mlp, response_mlp_reference
from mmconvnextv2.pretrain import FCMAE

HALF = (torch.bfloat16, torch.float16)
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a unit in the last place, relative


def make_model(execution='packed', std=None):
    torch.manual_seed(0)
    model = FCMAE(
        backbone=dict(
            type='ConvNeXtV2',
            arch=dict(depths=(1, 1, 2, 1), channels=(8, 16, 32, 64)),
            out_indices=(3,),
            out_norm=False,
        ),
        neck=dict(type='FCMAEDecoder', channels=64),
        head=dict(type='FCMAEHead'),
        execution=execution,
    )
    model.init_weights()
    for parameter in model.parameters() if std else ():
        nn.init.normal_(parameter, std=std)
    return model


@lru_cache
def make_batch(count=4):
    """Embedded scenes of 64 x 96 pixels, normalised, two of six cells visible."""
    generator = np.random.default_rng(0)
    scenes = [render_scene(0, 0, index, 96).image[:64] for index in range(count)]
    images = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).double()
    samples = [DataSample(metainfo=dict(visible_cells=np.sort(generator.permutation(6)[:2]))) for _ in scenes]
    return (images - images.mean()) / images.std(), samples


@pytest.mark.parametrize('execution', ('packed', 'masked'))
@pytest.mark.parametrize('dtype', (torch.float32, *HALF), ids=str)
def test_autocast_changes_rounding_alone(dtype, execution):
    """Under autocast the loss and every gradient agree with float64 as far as the dtype's rounding goes, parameters
    and their gradients stay float32, and encoder features are in the autocast dtype."""
    exact, model = make_model(execution, std=0.1).double(), make_model(execution, std=0.1)
    images, samples = make_batch()
    wanted = exact.loss(images, samples)['loss']
    features = []
    model.backbone.stages[3].register_forward_hook(lambda module, inputs, output: features.append(output.dtype))
    with torch.autocast('cpu', dtype=dtype, enabled=dtype in HALF):
        loss = model.loss(images.float(), samples)['loss']
    assert loss.dtype == torch.float32
    error = ROUNDING.get(dtype, 2**-24)
    assert loss.item() == pytest.approx(wanted.item(), rel=4 * error)
    scale = 2.0**12  # float16 gradients would vanish without
    pairs = zip(
        (gradient / scale for gradient in torch.autograd.grad(loss * scale, list(model.parameters()))),
        torch.autograd.grad(wanted, list(exact.parameters())),
        model.named_parameters(),
        strict=True,
    )
    for gradient, true_gradient, (name, _) in pairs:
        assert gradient.dtype == torch.float32
        assert (gradient - true_gradient).norm() < 30 * error * true_gradient.norm(), name


@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_statistics_are_float32(dtype):
    """GRN's scale of half-precision sites is float32 and as exact as float32, where half-precision sums overflow or
    stop growing."""
    sites = (torch.randn(2, 5000, 6) * 300).to(dtype)
    scale = response_scale(sites)
    norm = sites.double().square().sum(1, keepdim=True).sqrt()
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale.double(), norm / norm.mean(-1, keepdim=True), rtol=1e-5, atol=0)
    counted = torch.rand(2, 5000, 1) < 0.5
    norm = (sites.double() * counted).square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(
        response_scale(sites, counted).double(), norm / norm.mean(-1, keepdim=True), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_grn_of_thousands(dtype):
    """GRN of a map with values of 1e3 is finite in half precision, with its gradients, and equals float64's."""
    torch.manual_seed(0)
    grn = GRN(8)
    nn.init.normal_(grn.gamma)
    nn.init.normal_(grn.beta)
    sites = (torch.randn(2, 9216, 8).sign() * 1e3).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        output = grn(sites)
    wide = sites.detach().double().requires_grad_()
    wanted = grn.double()(wide)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), wanted, rtol=4 * ROUNDING[dtype], atol=0.01)
    pull = torch.randn_like(output) * 1e-2
    (gradient,) = torch.autograd.grad(output, sites, pull)
    (true_gradient,) = torch.autograd.grad(wanted, wide, pull.double())
    assert gradient.isfinite().all()
    assert (gradient - true_gradient).norm() < 4 * ROUNDING[dtype] * true_gradient.norm()


@pytest.mark.parametrize('num_sites', (784, 8), ids=('folded', 'plain'))
@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_fused_mlp_of_thousands(dtype, num_sites):
    """The fused MLP whose hidden activations reach 1e3 stays finite, forward and backward, and equals float64's."""
    torch.manual_seed(0)
    x = torch.randn(2, num_sites, 16)
    shapes = ((64, 16), (64,), (64,), (64,), (16, 64), (16,))
    scales = (1e3 / 4, 1.0, 1.0, 1.0, 1 / 64, 1.0)
    inputs = [x, *(torch.randn(shape) * scale for shape, scale in zip(shapes, scales))]
    inputs = [tensor.to(dtype).float().requires_grad_() for tensor in inputs]
    with torch.autocast('cpu', dtype=dtype):
        output = fused_response_mlp(*inputs)
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    wanted = response_mlp_reference(*wide)
    hidden = torch.nn.functional.linear(wide[0], wide[1], wide[2])
    assert hidden.abs().max() > 1e3 and output.isfinite().all()
    assert (output - wanted).norm() < 8 * ROUNDING[dtype] * wanted.norm()
    pull = torch.randn_like(output) * 0.1
    gradients = torch.autograd.grad(output, inputs, pull)
    for gradient, true_gradient in zip(gradients, torch.autograd.grad(wanted, wide, pull.double()), strict=True):
        assert (gradient - true_gradient).norm() < 30 * ROUNDING[dtype] * true_gradient.norm()


@pytest.mark.parametrize('fused', (True, False))
@pytest.mark.parametrize('dtype', HALF, ids=str)
def test_block_of_thousands(dtype, fused):
    """A block that is fed a map of 1e3 and whose hidden activations reach 1e3 equals float64's."""
    torch.manual_seed(0)
    block = ConvNeXtV2Block(8)
    block.kernels = None if fused else 'layers'
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, std={'pointwise_conv1.weight': 300, 'norm.weight': 1}.get(name, 0.05))
    sites = torch.randn(2, 144, 8).sign() * 1e3
    execution, grid = get_execution('dense', masking=False), Grid(12, 12, stride=4)
    hidden = []
    handle = block.pointwise_conv1.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    wanted = block.double()(sites.double(), grid, execution)
    handle.remove()
    with torch.autocast('cpu', dtype=dtype):
        output = block.float()(sites, grid, execution)
    assert hidden[0].abs().max() > 1e3
    branch = wanted - sites
    assert (output - wanted).norm() < 30 * ROUNDING[dtype] * branch.norm()


def curve(dtype, num_steps=50):
    """Train on real images, the same batches whatever the dtype; return the losses."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**12, enabled=dtype == torch.float16)
    images, samples = make_batch(24)
    losses = []
    for step in range(num_steps):
        pick = [(8 * step + index) % len(images) for index in range(8)]
        with torch.autocast('cpu', dtype=dtype, enabled=dtype in HALF):
            loss = model.loss(images[pick].float(), [samples[index] for index in pick])['loss']
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return np.array(losses)


def test_half_precision_loss_follows_float32():
    """On the same images and masks the bfloat16 loss stays within 1 % of the float32 loss for 50 steps in which that
    falls by a tenth, and so does the float16 loss."""
    wanted = curve(torch.float32)
    assert wanted[-5:].mean() < 0.9 * wanted[:5].mean()
    for dtype in HALF:
        assert abs(curve(dtype) / wanted - 1).max() < 0.01


def test_float16_wrapper_scales_and_skips():
    """The float16 wrapper steps as if there were no scale, skips a step whose gradients overflow and halves the scale,
    and a restored scaler goes on from there."""
    images, samples = make_batch()
    results = []
    for scale in (1.0, 2.0**12):
        model = make_model()
        wrapper = FP16OptimWrapper(loss_scale=scale, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        with wrapper.optim_context(model):
            loss = model.loss(images.float(), samples)['loss']
        assert model.head.pred(torch.zeros(1, 64)).dtype == torch.float32  # the context has ended
        wrapper.update_params(loss)
        results.append(model.head.pred.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-6)
    wrapper = FP16OptimWrapper(
        loss_scale=dict(init_scale=2.0**120), optimizer=torch.optim.SGD(model.parameters(), lr=1)
    )
    before = model.neck.mask_token.detach().clone()
    with wrapper.optim_context(model):
        loss = model.loss(images.float(), samples)['loss']
    wrapper.update_params(loss)
    assert torch.equal(model.neck.mask_token, before) and wrapper.loss_scaler.get_scale() == 2.0**119
    other = FP16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=1))
    other.load_state_dict(wrapper.state_dict())
    assert other.loss_scaler.get_scale() == 2.0**119


def test_float16_wrapper_refuses_what_it_cannot_do():
    """A scale that is none is refused, and mmengine's own wrapper says that it needs a GPU."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    for scale in (0, -1.0, 'static', None):
        with pytest.raises(ValueError, match=f"loss_scale={scale!r}: expected 'dynamic'"):
            FP16OptimWrapper(loss_scale=scale, optimizer=optimizer)
    if not torch.cuda.is_available():
        with pytest.raises(AssertionError, match='only available training on gpu'):
            AmpOptimWrapper(optimizer=optimizer)
