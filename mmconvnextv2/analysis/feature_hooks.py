"""Hooks on the blocks of models from any supported library: the 4C hidden features and the blocks' outputs.

Hidden features are the input of a block's second linear layer, after the activation and the response norm, if any.
They are passed to a callback block by block during the forward, so that none has to be kept in memory.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from ..utils.errors import UserError

SECOND_LINEARS = (
    'pointwise_conv2',  # ours and mmpretrain's ConvNeXt
    'mlp.fc2',  # timm: ConvNeXt, ViT and others
    'pwconv2',  # transformers
    'ffn.layers.1',  # mmpretrain's ViT
)
See = Callable[[int, Tensor], None]  # callback with the index of the block and its features (B, N, C)


class Block(NamedTuple):
    """A block of a model: its name, its module, and its second linear layer, a ``Linear`` or a 1x1 convolution."""

    name: str
    module: nn.Module
    second: nn.Module


def find_blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of a model, from first to last.

    Raises:
        ValueError: If the model has no known blocks.
    """
    blocks = []
    for name, module in model.named_modules():
        place = next((place for place in SECOND_LINEARS if name.endswith(f'.{place}')), None)
        if place:
            block = name[: -len(place) - 1]
            blocks.append(Block(block, model.get_submodule(block), module))
    if not blocks:
        raise UserError(
            f'{type(model).__name__} has no block with a known second linear layer: expected modules named '
            f'{", ".join(SECOND_LINEARS)}'
        )
    return blocks


def depths_of(blocks: list[Block]) -> list[float]:
    """Return the normalised depth of each block, 0 for the first and 1 for the last."""
    return [index / max(len(blocks) - 1, 1) for index in range(len(blocks))]


@contextmanager
def watch_hidden(model: nn.Module, blocks: list[Block], see: See) -> Iterator[None]:
    """Call ``see`` with the hidden features (B, N, 4C) of every block in each forward inside the ``with`` statement."""
    skip = num_extra_tokens(model)

    def hook_of(index: int) -> Callable:
        first = isinstance(blocks[index].second, nn.Conv2d)
        return lambda module, inputs: see(index, to_sites(inputs[0], first, skip))

    with _removed([block.second.register_forward_pre_hook(hook_of(index)) for index, block in enumerate(blocks)]):
        yield


@contextmanager
def watch_outputs(model: nn.Module, blocks: list[Block], see: See) -> Iterator[None]:
    """Call ``see`` with the output (B, N, C) of every block in each forward inside the ``with`` statement."""
    skip = num_extra_tokens(model)

    def hook_of(index: int) -> Callable:
        channels = len(blocks[index].second.weight)
        return lambda module, inputs, output: see(index, to_sites(output, output.shape[1] == channels, skip))

    with _removed([block.module.register_forward_hook(hook_of(index)) for index, block in enumerate(blocks)]):
        yield


@contextmanager
def _removed(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def num_extra_tokens(model: nn.Module) -> int:
    """Return the number of a transformer's tokens that are not sites, by timm's or mmpretrain's attribute."""
    return getattr(model, 'num_prefix_tokens', getattr(model, 'num_extra_tokens', 0))


def to_sites(features: Tensor, channels_first: bool, skip: int) -> Tensor:
    """View features of any layout as (B, N, C).

    Args:
        features (Tensor): Features of shape (B, N, C), or a map of shape (B, C, H, W) or (B, H, W, C).
        channels_first (bool): Whether a map has shape (B, C, H, W).
        skip (int): Number of leading tokens of (B, N, C) that are not sites and are dropped.
    """
    if features.ndim == 3:
        return features[:, skip:]
    return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)


def sites_to_square(sites: Tensor) -> Tensor:
    """Arrange the sites (B, N, C) of a square image as (B, H, H, C).

    Raises:
        ValueError: If N is not a square.
    """
    side = math.isqrt(sites.shape[1])
    if side**2 != sites.shape[1]:
        raise UserError(f'{sites.shape[1]} positions: expected a square number; does the model have extra tokens?')
    return sites.unflatten(1, (side, side))
