"""The norm that fused operations take of each channel is the formula's, whatever is squared at a time."""

import importlib

import pytest
import torch

MODULE = importlib.import_module('mmconvnextv2.ops.grn')


@pytest.mark.parametrize('squares', [1, 20, 2**18, None])
@pytest.mark.parametrize('masked', [False, True])
def test_channel_norm(squares, masked, monkeypatch):
    """The norm over the sites that count, one image at a time in float64, whether one site is squared at a time, a few
    or all, or by torch's own norm as on a GPU."""
    monkeypatch.setattr(MODULE, 'SQUARES', squares)
    monkeypatch.setattr(MODULE, 'in_blocks', lambda features: squares is not None)
    x = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    site_mask = (torch.arange(14).view(2, 7, 1) % 3 != 1) if masked else None
    for image, norm in enumerate(MODULE.channel_norm(x, site_mask)):
        rows = x[image] if site_mask is None else x[image][site_mask[image, :, 0]]
        torch.testing.assert_close(norm[0], (rows * rows).sum(0).sqrt(), rtol=1e-14, atol=0)


@pytest.mark.parametrize('blocks', [True, False])
def test_half_precision(blocks, monkeypatch):
    """Features of 600, whose squares float16 cannot hold, have a finite norm in float32."""
    monkeypatch.setattr(MODULE, 'in_blocks', lambda features: blocks)
    x = torch.full((1, 50, 3), 600.0, dtype=torch.float16)
    norm = MODULE.channel_norm(x, None)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, torch.full((1, 1, 3), 600 * 50**0.5))
