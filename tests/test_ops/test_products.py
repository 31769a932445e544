"""Products of the response MLP equal those of float64, whichever library multiplies."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmconvnextv2.ops import matmul as products

ONEDNN = pytest.mark.skipif(not products.HAS_INNER_PRODUCT, reason='install a torch that is built with oneDNN')
SHAPES = {  # of the left and of the right factor
    'one matrix': ((40, 24), (24, 33)),
    'one for all': ((3, 20, 24), (24, 33)),
    'one for each': ((3, 20, 24), (3, 24, 33)),
    'one of one': ((1, 20, 24), (1, 24, 33)),
    'no row': ((0, 24), (24, 33)),
    'no image': ((0, 20, 24), (0, 24, 33)),
    'no column': ((40, 24), (24, 0)),
    'nothing to sum': ((40, 0), (0, 33)),
}
PRECISION = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def draw(*shape, transposed=False):
    generator = torch.Generator().manual_seed(sum(shape))
    *batch, rows, columns = shape
    if transposed:
        return torch.randn(*batch, columns, rows, generator=generator, dtype=torch.float64).transpose(-1, -2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def runs_onednn(left, right):
    """Whether a product is oneDNN's, as the profiler sees it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        products.multiply(left, right)
    return any(event.name == 'mkldnn::_linear_pointwise' for event in profile.events())


@pytest.mark.parametrize('left_transposed, right_transposed', itertools.product((False, True), repeat=2))
@pytest.mark.parametrize('dtype, with_bias', itertools.product(PRECISION, (False, True)))
@pytest.mark.parametrize('shape', SHAPES)
def test_equals_a_sum_in_float64(shape, dtype, with_bias, left_transposed, right_transposed):
    """Plain and transposed factors, with and without a bias, empty ones too, give the sum over k of left * right."""
    left = draw(*SHAPES[shape][0], transposed=left_transposed).to(dtype)
    right = draw(*SHAPES[shape][1], transposed=right_transposed).to(dtype)
    bias = torch.linspace(-50, 50, right.shape[-1], dtype=dtype) if with_bias else None
    product = products.multiply(left, right, bias)
    exact = (left.double()[..., None] * right.double()[..., None, :, :]).sum(-2) + (bias.double() if with_bias else 0)
    assert product.dtype == dtype and product.shape == exact.shape
    assert (product.double() - exact).norm() <= PRECISION[dtype] * exact.norm()


@ONEDNN
def test_onednn_takes_float32_matrices():
    """oneDNN multiplies float32 matrices, one for all or for a single image too, and neither other dtypes nor
    batches."""
    assert all(
        runs_onednn(draw(*SHAPES[name][0]).float(), draw(*SHAPES[name][1]).float())
        for name in ('one matrix', 'one for all', 'one of one')
    )
    left, right = (draw(*shape) for shape in SHAPES['one matrix'])
    assert not runs_onednn(left, right) and not runs_onednn(left.bfloat16(), right.bfloat16())
    assert not runs_onednn(*(draw(*shape).float() for shape in SHAPES['one for each']))


@ONEDNN
@pytest.mark.filterwarnings('ignore:TF32 acceleration')  # torch's switch sets every flag it has
def test_onednn_can_be_switched_off():
    """torch's own switch for oneDNN holds here too, and the product stays the same."""
    left, right = (draw(*shape).float() for shape in SHAPES['one matrix'])
    product = products.multiply(left, right)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not runs_onednn(left, right)
        torch.testing.assert_close(products.multiply(left, right), product, rtol=1e-5, atol=1e-5)
    assert runs_onednn(left, right)


@pytest.mark.parametrize('dtype', PRECISION)
def test_operations_are_counted(dtype):
    """torch's counter sees two operations a multiply-add, whichever library multiplies."""
    left, right = (draw(*shape).to(dtype) for shape in SHAPES['one for all'])
    with FlopCounterMode(display=False) as counter:
        products.multiply(left, right, torch.zeros(33, dtype=dtype))
    assert counter.get_total_flops() == 2 * 60 * 24 * 33
