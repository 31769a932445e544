"""What a model computes inside its blocks, whatever library it is of: the 4C hidden features, and the blocks' outputs.

Hidden features are what a block's second linear reads, after the activation and, where there is one, the response norm.
They are handed over during the forward, block by block, so that none is kept.
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
See = Callable[[int, Tensor], None]  # number of the block, features (B, N, C)


class Block(NamedTuple):
    """A block of a model: its name, itself, and its second linear, a ``Linear`` or a 1x1 convolution."""

    name: str
    module: nn.Module
    second: nn.Module


def find_blocks(model: nn.Module) -> list[Block]:
    """Return the blocks of a model, from the first to the last.

    Raises:
        ValueError: If it has none that is known.
    """
    blocks = []
    for name, module in model.named_modules():
        place = next((place for place in SECOND_LINEARS if name.endswith(f'.{place}')), None)
        if place:
            block = name[: -len(place) - 1]
            blocks.append(Block(block, model.get_submodule(block), module))
    if not blocks:
        raise UserError(
            f'{type(model).__name__} has no block whose second linear is known: expected modules named '
            f'{", ".join(SECOND_LINEARS)}'
        )
    return blocks


def depths_of(blocks: list[Block]) -> list[float]:
    """Return the normalised depth of each block, 0 for the first and 1 for the last."""
    return [index / max(len(blocks) - 1, 1) for index in range(len(blocks))]


@contextmanager
def watch_hidden(model: nn.Module, blocks: list[Block], see: See) -> Iterator[None]:
    """Call ``see`` with the hidden features (B, N, 4C) of every block during each forward inside the block."""
    skip = num_extra_tokens(model)

    def hook_of(index: int) -> Callable:
        first = isinstance(blocks[index].second, nn.Conv2d)
        return lambda module, inputs: see(index, to_sites(inputs[0], first, skip))

    with _removed([block.second.register_forward_pre_hook(hook_of(index)) for index, block in enumerate(blocks)]):
        yield


@contextmanager
def watch_outputs(model: nn.Module, blocks: list[Block], see: See) -> Iterator[None]:
    """Call ``see`` with the output (B, N, C) of every block during each forward inside the block."""
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
    """Return how many of a transformer's tokens are not sites: timm's and mmpretrain's names for it."""
    return getattr(model, 'num_prefix_tokens', getattr(model, 'num_extra_tokens', 0))


def to_sites(features: Tensor, channels_first: bool, skip: int) -> Tensor:
    """View features of any layout as (B, N, C).

    Args:
        features (Tensor): (B, N, C), or a map (B, C, H, W) or (B, H, W, C).
        channels_first (bool): Which of the two a map is.
        skip (int): Tokens to leave out of (B, N, C), which are not sites.
    """
    if features.ndim == 3:
        return features[:, skip:]
    return features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)


def sites_to_square(sites: Tensor) -> Tensor:
    """Lay sites (B, N, C) of a square image out as (B, H, H, C).

    Raises:
        ValueError: If N is not a square.
    """
    side = math.isqrt(sites.shape[1])
    if side**2 != sites.shape[1]:
        raise UserError(f'{sites.shape[1]} positions: expected a square number; does the model have extra tokens?')
    return sites.unflatten(1, (side, side))
