"""The sum of a block's input and its branch equals its parts, with gradients, whatever the dtypes."""

import pytest
import torch

from mmconvnextv2.ops import add_branch
from mmconvnextv2.ops.grid import Grid

KEPT = torch.tensor([2.0, 0.0, 1.25]).view(3, 1, 1)  # one image drops its branch


def draw(dtype, seed):
    return torch.randn(3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def with_gradients(function, sites, branch):
    output = function(sites, branch)
    noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    return output, *torch.autograd.grad(output, (sites, branch), noise)


@pytest.mark.parametrize(
    'of_sites, of_branch, of_kept',
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
    ],
)
def test_sum_is_that_of_its_parts(of_sites, of_branch, of_kept):
    """Values and gradients are those of ``sites + branch * kept`` in float64, rounded to the dtypes that they have; a
    dropped branch has no gradient."""
    sites, branch, kept = draw(of_sites, 0), draw(of_branch, 1), KEPT.to(of_kept)
    tolerance = 1e-12 if of_sites == torch.float64 else 2e-2
    found = with_gradients(lambda sites, branch: add_branch(sites, branch, kept), sites, branch)
    wide = [one.detach().double().requires_grad_() for one in (sites, branch)]
    wanted = with_gradients(lambda sites, branch: sites + branch * KEPT.double(), *wide)
    assert [one.dtype for one in found] == [torch.promote_types(of_sites, of_branch), of_sites, of_branch]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)
    assert not found[2][1].any() and found[2][0].any()


def test_layers_support_second_derivatives():
    """Single layers give the same, and second derivatives; all branches count without a factor."""
    sites, branch, grid = draw(torch.float64, 0), draw(torch.float64, 1), Grid(2, 2, 4, kernels='layers')
    kept = KEPT.double()
    fused, layers = (
        with_gradients(lambda sites, branch, grid=grid: add_branch(sites, branch, kept, grid), sites, branch)
        for grid in (None, grid)
    )
    for one, other in zip(fused, layers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda *both: add_branch(*both, kept, grid).square(), (sites, branch))
    assert torch.equal(add_branch(sites, branch, None), sites + branch)
