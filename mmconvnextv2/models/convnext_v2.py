"""ConvNeXt V2 (arXiv 2301.00808), one backbone for pretraining, detection, segmentation and classification.

Parameter names and shapes are those of mmpretrain's ``ConvNeXt(use_grn=True)``. What differs: the block is written over
sites (B, N, C), and an execution (:mod:`.execution`) decides which sites a forward visits, so that the same weights
execution over a whole map or over the visible cells of a masked image.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..ops.dispatch import check_kernels
from ..ops.grid import Grid
from ..ops.reductions import mean_over_sites
from ..utils.errors import UserError
from .execution import Execution, check_images, get_execution
from .layer_depth import layer_depth
from .layers import DropPath, LayerNorm
from .response_norms import build_response_norm

ARCHS = {
    'atto': dict(depths=(2, 2, 6, 2), channels=(40, 80, 160, 320)),
    'femto': dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)),
    'pico': dict(depths=(2, 2, 6, 2), channels=(64, 128, 256, 512)),
    'nano': dict(depths=(2, 2, 8, 2), channels=(80, 160, 320, 640)),
    'tiny': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    'base': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    'large': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
    'huge': dict(depths=(3, 3, 27, 3), channels=(352, 704, 1408, 2816)),
}


def resolve_arch(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ``(depths, channels)`` of a named or described architecture.

    Raises:
        ValueError: If the name is unknown, or a description does not give four depths and four channels.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise UserError(
                f'arch={arch!r} is unknown: choose from {list(ARCHS)}, or give '
                'dict(depths=(a, b, c, d), channels=(e, f, g, h))'
            )
        arch = ARCHS[arch]
    if set(arch) != {'depths', 'channels'} or len(arch['depths']) != 4 or len(arch['channels']) != 4:
        raise UserError(f'arch={arch!r}: expected dict(depths=(a, b, c, d), channels=(e, f, g, h))')
    return tuple(arch['depths']), tuple(arch['channels'])


class Stem(nn.Sequential):
    """4x4 patches to sites, then LayerNorm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 4, stride=4), LayerNorm(channels))

    def forward(  # type: ignore[override]  # nn.Sequential takes one argument
        self, images: Tensor, visible_cells: Tensor | None, execution: Execution
    ) -> tuple[Tensor, Grid]:
        conv, norm = self
        sites, grid = execution.enter(images, visible_cells, cast(nn.Conv2d, conv))
        return norm(sites), grid


class Downsample(nn.Sequential):
    """LayerNorm, then 2x2 sites to one."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(LayerNorm(in_channels), nn.Conv2d(in_channels, channels, 2, stride=2))

    def forward(  # type: ignore[override]  # nn.Sequential takes one argument
        self, sites: Tensor, grid: Grid, execution: Execution
    ) -> tuple[Tensor, Grid]:
        norm, conv = self
        return execution.downsample(norm(sites), grid, cast(nn.Conv2d, conv))


class ConvNeXtV2Block(nn.Module):
    """Depthwise 7x7, LayerNorm, linear, GELU, GRN, linear, and a residual, over sites (B, N, C).

    Args:
        channels (int): C.
        drop_path_rate (float): Defaults to 0.
        response_norm (dict, optional): See :func:`.response_norms.build_response_norm`. Defaults to GRN.
        layer_scale_init_value (float): LayerScale (ConvNeXt V1) is present when positive. Defaults to 0.

    Attributes:
        kernels (str, optional): Which implementations may run, see :mod:`mmconvnextv2.ops.dispatch`. Defaults to None,
            what the environment says.
    """

    kernels: str | None = None

    def __init__(
        self,
        channels: int,
        drop_path_rate: float = 0.0,
        response_norm: dict | None = dict(type='GRN'),
        layer_scale_init_value: float = 0.0,
    ) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm(channels)
        self.pointwise_conv1 = nn.Linear(channels, 4 * channels)
        self.grn = build_response_norm(response_norm, 4 * channels)
        self.pointwise_conv2 = nn.Linear(4 * channels, channels)
        self.drop_path = DropPath(drop_path_rate)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale_init_value)) if layer_scale_init_value else None

    def forward(self, sites: Tensor, grid: Grid, execution: Execution) -> Tensor:
        """Return sites of the same shape (B, N, C)."""
        if self.kernels is not None:
            grid = replace(grid, kernels=self.kernels)
        branch = execution.depthwise(sites, grid, self.depthwise_conv, self.norm)
        branch = ops.response_mlp(
            branch,
            grid,
            self.pointwise_conv1,
            self.grn,
            self.pointwise_conv2,
            lambda sites, conv: execution.depthwise(sites, grid, conv),
        )
        if self.gamma is not None:
            branch = branch * self.gamma
        return sites + self.drop_path(branch)

    @property
    def fused(self) -> bool:
        """Whether layers may run as one operation; the old name of ``kernels``, False is its ``'layers'``."""
        return self.kernels != 'layers'

    @fused.setter
    def fused(self, fused: bool) -> None:
        warnings.warn("block.fused goes with 0.4: set block.kernels to None or 'layers'", FutureWarning, stacklevel=2)
        self.kernels = None if fused else 'layers'


def set_kernels(model: nn.Module, kernels: str | None) -> None:
    """Set which implementations the blocks inside a model may run, see :mod:`mmconvnextv2.ops.dispatch`.

    Raises:
        ValueError: If the setting is unknown.
    """
    check_kernels(kernels)
    for module in model.modules():
        if isinstance(module, ConvNeXtV2Block):
            module.kernels = kernels


class Stage(nn.Sequential):
    """Blocks at one resolution."""

    def forward(  # type: ignore[override]  # nn.Sequential takes one argument
        self, sites: Tensor, grid: Grid, execution: Execution, recompute: bool
    ) -> Tensor:
        for block in self:
            if recompute and sites.requires_grad:
                sites = checkpoint(block, sites, grid, execution, use_reentrant=False)
            else:
                sites = block(sites, grid, execution)
        return sites


@MODELS.register_module()
class ConvNeXtV2(BaseModule):
    """The backbone.

    Args:
        arch (str | dict): A key of ``ARCHS``, or ``dict(depths=..., channels=...)`` with four numbers each.
        in_channels (int): Channels of the images. Defaults to 3.
        out_indices (Sequence[int]): Stages, 0 to 3, whose maps are returned; negative ones count from the end.
            Defaults to (0, 1, 2, 3).
        drop_path_rate (float): Rate of the last block; it grows linearly from 0. Defaults to 0.
        frozen_stages (int): The stem with stage 1, and so on, that do not train, 0 to 4. Defaults to 0.
        with_cp (bool): Recompute each block in the backward pass to save memory. Defaults to False.
        response_norm (dict, optional): The norm of the hidden features, ``dict(type=..., ...)`` of a key of
            ``mmconvnextv2.models.response_norms.RESPONSE_NORMS`` and its arguments; None is ConvNeXt V1. It stands in
            ``stages.S.B.grn`` whatever its type. Defaults to GRN.
        layer_scale_init_value (float): 1e-6 for ConvNeXt V1, 0 for none. Defaults to 0.
        out_norm (bool): Put a LayerNorm on each returned map. Defaults to True.
        gap_before_final_norm (bool): Return norm(mean over sites) of shape (B, C), as ImageNet classifiers use, in
            place of maps. Defaults to False.
        kernels (str, optional): Which implementations blocks may run: ``'auto'``, Triton kernels on a GPU; ``'torch'``,
            fused operations without them; ``'layers'``, layer by layer. Defaults to None, what the environment variable
            ``MMCONVNEXTV2_KERNELS`` says, or else ``'auto'``.
        init_cfg (dict | list[dict], optional): mmengine initializers; ``dict(type='ConvNeXtV2Pretrained',
            checkpoint=...)`` loads weights of any known layout, after everything else. Defaults to None.
    """

    init_cfg: dict | Sequence[dict] | None  # BaseModule sets it without a type

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = 0,
        with_cp: bool = False,
        response_norm: dict | None = dict(type='GRN'),
        layer_scale_init_value: float = 0.0,
        out_norm: bool = True,
        gap_before_final_norm: bool = False,
        kernels: str | None = None,
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.depths, self.channels = resolve_arch(arch)
        self.out_indices = _resolve_out_indices(out_indices)
        if not 0 <= frozen_stages <= 4:
            raise UserError(f'frozen_stages={frozen_stages}: expected 0 to 4')
        if not 0 <= drop_path_rate < 1:
            raise UserError(f'drop_path_rate={drop_path_rate}: expected a rate in [0, 1)')
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.out_norm = out_norm
        self.gap_before_final_norm = gap_before_final_norm
        rates = [drop_path_rate * block / max(sum(self.depths) - 1, 1) for block in range(sum(self.depths))]
        self.downsample_layers = nn.ModuleList([Stem(in_channels, self.channels[0])])
        self.downsample_layers.extend(Downsample(*pair) for pair in zip(self.channels, self.channels[1:]))
        self.stages = nn.ModuleList()
        for stage, (depth, width) in enumerate(zip(self.depths, self.channels)):
            first = sum(self.depths[:stage])
            self.stages.append(
                Stage(
                    *(
                        ConvNeXtV2Block(width, rate, response_norm, layer_scale_init_value)
                        for rate in rates[first : first + depth]
                    )
                )
            )
        if with_cp and any(isinstance(module, nn.BatchNorm1d) for module in self.stages.modules()):
            raise UserError(
                "with_cp=True with response_norm=dict(type='BN'): computing blocks again would count each "
                'batch twice in the running statistics; set with_cp=False'
            )
        for stage in self.out_indices if out_norm else ():
            self.add_module(f'norm{stage}', LayerNorm(self.channels[stage]))
        self.kernels = kernels
        set_kernels(self, kernels)
        self._freeze()

    def forward(
        self, images: Tensor, visible_cells: Tensor | None = None, execution: str | None = None
    ) -> tuple[Tensor, ...]:
        """Compute feature maps.

        Args:
            images (Tensor): (B, in_channels, H, W), at least 32x32; multiples of 32 when masked.
            visible_cells (Tensor, optional): Long, (B, K), raster indices of the visible 32x32-pixel cells of each
                image, ascending. Defaults to None, nothing is masked.
            execution (str, optional): How to visit sites. Defaults to ``'dense'`` without visible cells, else
                ``'packed'``.

        Returns:
            tuple[Tensor]: Maps (B, C, H / s, W / s) of strides s = 4, 8, 16, 32, those of ``out_indices``, zero in
            hidden cells; with ``gap_before_final_norm``, vectors (B, C).

        Raises:
            ValueError: For images, visible cells or an execution that do not fit.
        """
        check_images(images, visible_cells)
        masking = visible_cells is not None
        chosen = get_execution(execution or ('packed' if masking else 'dense'), masking)
        images = images.contiguous(memory_format=torch.channels_last)
        outputs = []
        for stage in range(max(self.out_indices) + 1):
            if stage == 0:
                sites, grid = self.downsample_layers[0](images, visible_cells, chosen)
            else:
                sites, grid = self.downsample_layers[stage](sites, grid, chosen)
            sites = self.stages[stage](sites, grid, chosen, self.with_cp and self.training)
            if stage in self.out_indices:
                outputs.append(self._output(stage, sites, grid, chosen))
        return tuple(outputs)

    def _output(self, stage: int, sites: Tensor, grid: Grid, execution: Execution) -> Tensor:
        """Apply the output norm, and lay the sites (B, N, C) out as a map or average them.

        Maps leave in NCHW memory: compiled mmcv's RoIAlign reads channels-last memory as if it were NCHW, silently.
        """
        if self.gap_before_final_norm:
            sites = mean_over_sites(sites, grid.site_mask)  # (B, 1, C)
        if self.out_norm:
            sites = getattr(self, f'norm{stage}')(sites)
        return sites.squeeze(1) if self.gap_before_final_norm else execution.leave(sites, grid).contiguous()

    def init_weights(self) -> None:
        """Draw weights (std 0.02, once), then run ``init_cfg``, which may load pretrained weights.

        The order matters: a drawn weight must never replace a loaded one.
        """
        given = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        if not self._is_init:
            self.init_cfg = [dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02), *given]
        super().init_weights()
        self.init_cfg = given

    def train(self, mode: bool = True) -> 'ConvNeXtV2':
        """Switch to training; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for stage in range(self.frozen_stages):
            for module in (self.downsample_layers[stage], self.stages[stage]):
                module.eval()
                module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '', decay_type: str = 'group_wise') -> tuple[int, int]:
        """Return the depth of a parameter for layer-wise learning-rate decay, and the number of depths.

        Args:
            param_name (str): Full name of the parameter.
            prefix (str): What stands before the backbone's own names, such as ``'backbone.'``. Defaults to ''.
            decay_type (str): See :func:`mmconvnextv2.models.layer_depth.layer_depth`. Defaults to ``'group_wise'``.

        Returns:
            tuple[int, int]: Depth of the parameter in [0, n - 1], and n.

        Raises:
            ValueError: If ``decay_type`` is unknown.
        """
        inside = param_name.startswith(prefix)
        return layer_depth(param_name[len(prefix) :] if inside else 'head', self.depths, decay_type)


def _resolve_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Return ``out_indices`` ascending and in 0 to 3, or raise ``ValueError``."""
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    if not indices or any(not -4 <= index <= 3 for index in indices):
        raise UserError(f'out_indices={out_indices!r}: expected stages in 0 to 3')
    return tuple(sorted({index % 4 for index in indices}))
