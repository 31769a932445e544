"""ConvNeXt V2 (arXiv 2301.00808), one backbone for pretraining, detection, segmentation and classification.

Parameter names and shapes are those of mmpretrain's ``ConvNeXt(use_grn=True)``. Unlike there, blocks operate on sites
(B, N, C), and an execution (:mod:`.execution`) decides which sites a forward visits. The same weights therefore run on
whole maps and on the visible cells of masked images.
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
from ..ops.dispatch import check_kernels, has_hooks
from ..ops.grid import Grid
from ..ops.reductions import mean_over_sites
from ..ops.valid_sites import check_valid_pixels, fill_invalid, read_valid_pixels
from ..utils.errors import UserError
from .execution import Execution, check_images, get_execution
from .execution.dense import Dense
from .execution.packed import Packed
from .grn import ResponseNorm
from .layer_depth import layer_depth
from .layers import DropPath, LayerNorm
from .response_norms import build_response_norm
from .stems import build_stem

ARCHS = {
    'atto': dict(depths=(2, 2, 6, 2), channels=(40, 80, 160, 320)),
    'femto': dict(depths=(2, 2, 6, 2), channels=(48, 96, 192, 384)),
    'pico': dict(depths=(2, 2, 6, 2), channels=(64, 128, 256, 512)),
    'nano': dict(depths=(2, 2, 8, 2), channels=(80, 160, 320, 640)),
    'tiny': dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768)),
    'small': dict(depths=(3, 3, 27, 3), channels=(96, 192, 384, 768)),  # of ConvNeXt V1 (arXiv 2201.03545) alone
    'base': dict(depths=(3, 3, 27, 3), channels=(128, 256, 512, 1024)),
    'large': dict(depths=(3, 3, 27, 3), channels=(192, 384, 768, 1536)),
    'xlarge': dict(depths=(3, 3, 27, 3), channels=(256, 512, 1024, 2048)),  # of ConvNeXt V1 alone
    'huge': dict(depths=(3, 3, 27, 3), channels=(352, 704, 1408, 2816)),
}
PLAIN = Dense.depthwise, Packed.depthwise  # which are ops.depthwise; those of other executions may be anything
INIT_CFG = dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02)  # and biases of 0


def resolve_arch(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ``(depths, channels)`` of an architecture given by name or as a dict.

    Raises:
        ValueError: If the name is unknown, or the dict does not give four depths and four channels.
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


class Downsample(nn.Sequential):
    """LayerNorm, then a convolution from 2x2 sites to one."""

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
        channels (int): Number of channels C.
        drop_path_rate (float): Probability of dropping the branch of an image. Defaults to 0.
        response_norm (dict, optional): Config of the norm of the hidden features, see
            :func:`.response_norms.build_response_norm`. Defaults to GRN.
        layer_scale_init_value (float): Initial value of LayerScale (ConvNeXt V1); 0 leaves it out. Defaults to 0.

    Attributes:
        kernels (str, optional): Implementations that may run, see :mod:`mmconvnextv2.ops.dispatch`. Defaults to None,
            the environment's setting.
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
        conv, norm, drop_path = self.depthwise_conv, self.norm, self.drop_path
        mlp = self.pointwise_conv1, self.grn, self.pointwise_conv2
        draws = type(drop_path) is DropPath and not has_hooks(drop_path)
        stock = draws and self.gamma is None and type(execution).depthwise in PLAIN
        if stock and ops.fuse_block(sites, grid, conv, norm, *mlp):
            return ops.whole_block(sites, grid, conv, norm, *mlp, drop_path.draw(sites))
        branch = execution.depthwise(sites, grid, conv, norm)
        branch = ops.response_mlp(branch, grid, *mlp, lambda sites, conv: execution.depthwise(sites, grid, conv))
        if self.gamma is not None:
            branch = branch * self.gamma
        if not draws:
            return sites + drop_path(branch)
        return ops.add_branch(sites, branch, drop_path.draw(branch), grid)

    @property
    def fused(self) -> bool:
        """Whether layers may be fused; deprecated in favour of ``kernels``, which False sets to ``'layers'``."""
        return self.kernels != 'layers'

    @fused.setter
    def fused(self, fused: bool) -> None:
        warnings.warn(
            "block.fused will be removed in 0.4: set block.kernels to None or 'layers'", FutureWarning, stacklevel=2
        )
        self.kernels = None if fused else 'layers'


def set_kernels(model: nn.Module, kernels: str | None) -> None:
    """Set which implementations a model's blocks may run, see :mod:`mmconvnextv2.ops.dispatch`.

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
            if recompute and sites.requires_grad:  # frozen blocks before the first trained one store nothing to save
                sites = checkpoint(block, sites, grid, execution, use_reentrant=False)
            else:
                sites = block(sites, grid, execution)
        return sites


@MODELS.register_module()
class ConvNeXtV2(BaseModule):
    """ConvNeXt V2 backbone.

    Args:
        arch (str | dict): Key of ``ARCHS``, or ``dict(depths=..., channels=...)`` with four numbers each. Defaults to
            ``'tiny'``.
        in_channels (int): Channels of the images. Defaults to 3.
        out_indices (Sequence[int]): Stages, 0 to 3, whose maps are returned; negative indices count from the end.
            Defaults to (0, 1, 2, 3).
        drop_path_rate (float): Drop path rate of the last block; rates grow linearly from 0. Defaults to 0.
        frozen_stages (int): Number of stages that do not train, 0 to 4; the stem is frozen with the first. Defaults to
            0.
        with_cp (bool): Whether to recompute each block in the backward pass to save memory. Defaults to False.
        response_norm (dict, optional): Norm of the hidden features, ``dict(type=..., ...)`` with a key of
            ``mmconvnextv2.models.response_norms.RESPONSE_NORMS`` and its arguments. Its parameters are named
            ``stages.S.B.grn`` for every type. None gives ConvNeXt V1. Defaults to GRN.
        layer_scale_init_value (float): Initial value of LayerScale, 1e-6 for ConvNeXt V1; 0 leaves it out. Defaults to
            0.
        out_norm (bool): Whether to apply a LayerNorm to each returned map. Defaults to True.
        gap_before_final_norm (bool): Whether to return norm(mean over sites) of shape (B, C), as ImageNet classifiers
            do, instead of maps. Defaults to False.
        kernels (str, optional): Implementations that blocks may run: ``'auto'``, Triton kernels on a GPU, or with
            ``env_cfg.cudnn_benchmark`` what is faster there; ``'triton'``, kernels without timing them; ``'torch'``,
            fused operations without Triton; ``'layers'``, layer by layer. Defaults to None, the value of the
            environment variable ``MMCONVNEXTV2_KERNELS``, or ``'auto'`` if it is not set.
        init_cfg (dict | list[dict], optional): Configs of mmengine initializers. ``dict(type='ConvNeXtV2Pretrained',
            checkpoint=...)`` loads weights of any known layout, after all other initialization. Defaults to None.
        stem (dict, optional): Stem, ``dict(type='ConvStem', stride=...)`` for MMEarth's weights, see
            :class:`mmconvnextv2.models.stems.ConvStem`, or ``dict(type='PatchStem', stride=...)``; the strides of the
            maps are then its stride times 1, 2, 4, 8, and masking cells have 8 times its stride. Defaults to None, 4x4
            patches.
        norm_eps (float): Constant in every LayerNorm; 1e-5 for CLIP's ConvNeXt-XXLarge. Defaults to 1e-6.
        valid_sites (bool): Whether to leave out sites without a valid pixel: response norms do not count them,
            convolutions read them as zero, and maps are zero there. NaN in any channel marks an invalid pixel. An image
            then has the same maps alone and padded in a batch. Defaults to False, as published weights were trained:
            padding counts.
    """

    init_cfg: dict | Sequence[dict] | None  # untyped in BaseModule

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
        stem: dict | None = None,
        norm_eps: float = 1e-6,
        valid_sites: bool = False,
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
        self.downsample_layers = nn.ModuleList([build_stem(stem, in_channels, self.channels[0])])
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
                "with_cp=True with response_norm=dict(type='BN'): recomputing blocks would count each "
                'batch twice in the running statistics; set with_cp=False'
            )
        for stage in self.out_indices if out_norm else ():
            self.add_module(f'norm{stage}', LayerNorm(self.channels[stage]))
        _set_norm_eps(self, norm_eps)
        self.kernels = kernels
        self.valid_sites = valid_sites
        set_kernels(self, kernels)
        self._freeze()

    def forward(
        self,
        images: Tensor,
        visible_cells: Tensor | None = None,
        execution: str | None = None,
        valid_pixels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute feature maps.

        Args:
            images (Tensor): Images of shape (B, in_channels, H, W), at least one cell; with visible cells, H and W
                are multiples of a cell's side, 32 pixels behind 4x4 patches.
            visible_cells (Tensor, optional): Raster indices of each image's visible cells, ascending; long, (B, K).
                Defaults to None, no masking.
            execution (str, optional): Key of ``mmconvnextv2.models.execution.EXECUTIONS``. Defaults to ``'packed'``
                with visible cells, otherwise ``'dense'``.
            valid_pixels (Tensor, optional): Map that is True at pixels that hold data; bool, (B, H, W). Others may be
                NaN. A site of stride s is valid if any of its s x s pixels is. Defaults to None: with ``valid_sites``,
                pixels without NaN, otherwise all.

        Returns:
            tuple[Tensor]: Maps (B, C, H / s, W / s) of the stages in ``out_indices``, with strides s = 4, 8, 16, 32 and
            zeros in masked cells and at invalid sites; with ``gap_before_final_norm``, vectors (B, C). An image without
            a valid pixel gives zeros, and as a vector the output norm's bias.

        Raises:
            ValueError: If images, visible cells, execution or valid pixels are invalid or do not fit each other.
        """
        check_images(images, visible_cells, self.cell)
        masking = visible_cells is not None
        chosen = get_execution(execution or ('packed' if masking else 'dense'), masking)
        if valid_pixels is None and self.valid_sites:
            valid_pixels = read_valid_pixels(images)
        images = images.contiguous(memory_format=torch.channels_last)
        if valid_pixels is not None:
            check_valid_pixels(valid_pixels, images)
            images = fill_invalid(images, valid_pixels)
        outputs = []
        for stage in range(max(self.out_indices) + 1):
            if stage == 0:
                sites, grid = self.downsample_layers[0](images, visible_cells, chosen, valid_pixels)
            else:
                sites, grid = self.downsample_layers[stage](sites, grid, chosen)
            sites = self.stages[stage](sites, grid, chosen, self.with_cp and self.training)
            if stage in self.out_indices:
                outputs.append(self._output(stage, sites, grid, chosen))
        return tuple(outputs)

    @property
    def cell(self) -> int:
        """Pixels along one side of a masking cell, which is the stride of the last stage: 8 times the stem's."""
        return 8 * getattr(self.downsample_layers[0], 'stride', 4)

    def _output(self, stage: int, sites: Tensor, grid: Grid, execution: Execution) -> Tensor:
        """Apply the output norm, and turn the sites (B, N, C) into a map or their mean.

        Maps are contiguous in NCHW: compiled mmcv's RoIAlign silently misreads channels-last memory as NCHW.
        """
        if self.gap_before_final_norm:
            sites = mean_over_sites(sites, grid.site_mask)  # (B, 1, C)
        if self.out_norm:
            sites = getattr(self, f'norm{stage}')(sites)
        return sites.squeeze(1) if self.gap_before_final_norm else execution.leave(sites, grid).contiguous()

    def init_weights(self) -> None:
        """Initialise weights (std 0.02, once), then run ``init_cfg``, which may load pretrained weights.

        In this order, random initialisation cannot overwrite loaded weights.
        """
        given = [self.init_cfg] if isinstance(self.init_cfg, dict) else list(self.init_cfg or [])
        if not self._is_init:
            self.init_cfg = [dict(INIT_CFG), *given]
        super().init_weights()
        self.init_cfg = given

    def train(self, mode: bool = True) -> 'ConvNeXtV2':
        """Set training or evaluation mode; frozen stages stay in evaluation mode."""
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
            prefix (str): Prefix of the backbone's parameters in full names, such as ``'backbone.'``. Defaults to ''.
            decay_type (str): Grouping, see :func:`mmconvnextv2.models.layer_depth.layer_depth`. Defaults to
                ``'group_wise'``.

        Returns:
            tuple[int, int]: Depth of the parameter in [0, n - 1], and n.

        Raises:
            ValueError: If ``decay_type`` is unknown.
        """
        inside = param_name.startswith(prefix)
        return layer_depth(param_name[len(prefix) :] if inside else 'head', self.depths, decay_type)


def _set_norm_eps(model: nn.Module, eps: float) -> None:
    """Set the constant of every LayerNorm that is not a response norm, which has its own."""
    for module in model.modules():
        if isinstance(module, LayerNorm) and not isinstance(module, ResponseNorm):
            module.eps = eps


def _resolve_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    """Return ``out_indices`` in ascending order and in 0 to 3, or raise ``ValueError``."""
    indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    if not indices or any(not -4 <= index <= 3 for index in indices):
        raise UserError(f'out_indices={out_indices!r}: expected stages in 0 to 3')
    return tuple(sorted({index % 4 for index in indices}))
