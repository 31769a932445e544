"""Fused operations under torch.compile and activation checkpointing; DDP is in test_pretrain/test_distributed.py."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmconvnextv2.models.convnext_v2 import ConvNeXtV2Block
from mmconvnextv2.models.execution import Grid, get_execution
from mmconvnextv2.ops.depthwise_cpu import depthwise_map
from mmconvnextv2.ops.response_mlp import fused_response_mlp

SHAPES = {
    fused_response_mlp: [(2, 9, 3), (12, 3), (12,), (12,), (12,), (3, 12), (3,)],
    depthwise_map: [(2, 3, 9, 8), (3, 1, 7, 7), (3,)],
}


def make_inputs(operation):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in SHAPES[operation]
    ]


def assert_same(ours, theirs, inputs):
    torch.testing.assert_close(ours, theirs)
    noise = torch.randn_like(theirs)
    for one, other in zip(torch.autograd.grad(ours, inputs, noise), torch.autograd.grad(theirs, inputs, noise)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('operation', SHAPES)
def test_compiled(operation):
    """torch.compile takes an operation and its backward pass as one graph each, which give what eager calls give."""
    torch.compiler.reset()
    inputs = make_inputs(operation)
    compiled = torch.compile(lambda *tensors: operation(*tensors) * 2, backend='aot_eager', fullgraph=True)
    assert_same(compiled(*inputs), operation(*inputs) * 2, inputs)


@pytest.mark.parametrize('operation', SHAPES)
def test_recomputed(operation):
    """Computed again for the backward pass, an operation has the same values and gradients."""
    inputs = make_inputs(operation)
    assert_same(checkpoint(operation, *inputs, use_reentrant=False), operation(*inputs), inputs)


@pytest.mark.parametrize('execution', ['dense', 'packed'])
def test_compiled_block(execution):
    """A compiled block has the fused operation in its one graph, an exported block its single layers."""
    torch.compiler.reset()
    cells = torch.tensor([[0, 3], [1, 2]]) if execution == 'packed' else None
    grid, walk = Grid(8, 8, 8, visible_cells=cells), get_execution(execution, masking=cells is not None)
    block = ConvNeXtV2Block(3).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    sites = torch.randn(2, 32 if execution == 'packed' else 64, 3, dtype=torch.float64, requires_grad=True)
    wanted = block(sites, grid, walk)
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    found = torch.compile(block, backend=backend, fullgraph=True)(sites, grid, walk)
    assert len(graphs) == 1 and 'autograd_function_apply' in graphs[0]
    assert_same(found, wanted, [sites, *block.parameters()])

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, sites):
            return self.block(sites, grid, walk)

    graph = str(torch.export.export(Wrapped(), (sites,), strict=False).graph)
    assert graph.count('aten.linear') == 2 and 'aten.gelu' in graph
