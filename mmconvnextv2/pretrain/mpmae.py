"""MP-MAE: masked autoencoding with several targets per image (MMEarth, arXiv 2405.02771), on FCMAE's executions.

Differences from MMEarth's code: sparse layers do not need MinkowskiEngine; missing pixel values are left out of the
loss instead of set to zero; a visible pixel whose bands are all zero stays visible; and losses of several processes are
averaged over the targets of all of them, so that a target may be missing in one.
"""

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..models.execution import CELL
from ..models.layers import LayerNorm
from ..ops.cells import gather, visible_sites
from ..ops.grid import map_to_sites
from ..ops.reductions import mean_over_sites, statistics_dtype
from ..utils.errors import UserError
from .decoder import INIT_CFG, last_map, pixels_of_cells
from .fcmae import FCMAE, cell_of
from .loss_weights import build_loss_weights
from .masking import stack_visible_cells
from .targets import INPUTS, PixelValues, build_targets

POOLS = ('visible', 'decoded')


@MODELS.register_module()
class MultiTargetHead(BaseModule):
    """Prediction of several targets: one linear layer per target.

    Targets of pixels are predicted from the decoded sites of masked cells, those of the image from one vector.

    Args:
        targets (dict[str, dict]): Targets by name, ``dict(type=..., ...)`` of one of the types in
            :mod:`mmconvnextv2.pretrain.targets`: ``PixelValues``, ``PixelClasses``, ``ImageValues``, ``ImageClasses``.
        in_channels (int): Decoder channels D. Defaults to 512.
        image_channels (int): Image channels. Defaults to 3.
        stride (int): Stride s of the decoded map; each site predicts s x s pixels. Defaults to 32.
        cell (int): Side of a masking cell in pixels. Defaults to 32.
        encoder_channels (int): Channels of the encoder's last map. Defaults to 768.
        pool (str): What targets of the image are predicted from: ``'visible'``, the mean of the encoder's visible
            sites, then LayerNorm; or ``'decoded'``, as MMEarth's code, LayerNorm and then the mean of the whole decoded
            map, mask tokens included. Defaults to ``'visible'``.

    Raises:
        ValueError: If a target is not valid, or without targets of pixels nothing would train the decoder.
    """

    def __init__(
        self,
        targets: dict[str, dict],
        in_channels: int = 512,
        image_channels: int = 3,
        stride: int = CELL,
        cell: int = CELL,
        encoder_channels: int = 768,
        pool: str = 'visible',
    ) -> None:
        super().__init__(init_cfg=INIT_CFG)
        if pool not in POOLS:
            raise UserError(f'pool={pool!r} of MultiTargetHead: choose from {list(POOLS)}')
        self.targets = build_targets(targets)
        self.stride, self.cell, self.pool = stride, cell, pool
        of_image = [name for name, target in self.targets.items() if not target.of_pixels]
        if len(of_image) == len(self.targets) and pool == 'visible':
            raise UserError(
                f'the targets {of_image} are all of the image, which would leave the decoder without training: add '
                "one of pixels, such as dict(type='PixelValues', source='inputs', ...), or set pool='decoded'"
            )
        width = in_channels if pool == 'decoded' else encoder_channels
        self.norm = LayerNorm(width) if of_image else None
        self.preds = nn.ModuleDict()
        for name, target in self.targets.items():
            if target.source == INPUTS and target.depth != image_channels:
                raise UserError(
                    f'targets.{name} has channels={target.depth}, but its source, the images, have {image_channels}: '
                    'set it to model.backbone.in_channels'
                )
            if target.of_pixels:
                self.preds[name] = nn.Linear(in_channels, stride * stride * target.num_outputs)
            else:
                self.preds[name] = nn.Linear(width, target.num_outputs)
            for leaf in ('mean', 'std'):
                given = getattr(target, leaf, None)
                value = None if given is None else torch.tensor([float(one) for one in given])
                self.register_buffer(f'{leaf}_of_{name}', value, persistent=False)

    @property
    def reconstructs(self) -> str | None:
        """Name of the target that reconstructs the images, if there is one."""
        return next((name for name, target in self.targets.items() if target.source == INPUTS), None)

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays that samples hold; the images themselves are not among them."""
        return [name for name, target in self.targets.items() if target.source is None]

    def predict(
        self, decoded: Tensor, features: Tensor, visible_cells: Tensor, masked_cells: Tensor
    ) -> dict[str, Tensor]:
        """Predict every target.

        Args:
            decoded (Tensor): Decoded map, (B, D, H / s, W / s).
            features (Tensor): The encoder's last map, (B, Cin, h, w).
            visible_cells (Tensor): Visible cells, long, (B, K).
            masked_cells (Tensor): Masked cells, long, (B, M).

        Returns:
            dict[str, Tensor]: Targets of pixels: (B, M, cell * cell, C) in raster order. Targets of the image: (B, C).
        """
        patch = self.cell // self.stride
        sites = gather(decoded, masked_cells, patch)  # (B, M * p * p, D)
        vector = None if self.norm is None else self._pooled(decoded, features, visible_cells)
        predicted = {}
        for name, target in self.targets.items():
            if target.of_pixels:
                predicted[name] = pixels_of_cells(self.preds[name](sites), masked_cells, patch, self.stride)
            else:
                predicted[name] = self.preds[name](vector)
        return predicted

    def _pooled(self, decoded: Tensor, features: Tensor, visible_cells: Tensor) -> Tensor:
        """Return one vector per image, (B, D) or (B, Cin)."""
        assert self.norm is not None  # there are targets of the image
        if self.pool == 'decoded':
            return self.norm(map_to_sites(decoded)).mean(1)
        shown = visible_sites(visible_cells, *features.shape[-2:], stride=1, cell=1)  # a site per cell
        return self.norm(mean_over_sites(map_to_sites(features), shown).squeeze(1))

    def terms(
        self, predicted: dict[str, Tensor], arrays: dict[str, Tensor], masked_cells: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of errors and the numbers of their terms, (T, ) each, in the order of ``targets``.

        Args:
            predicted (dict[str, Tensor]): Result of :meth:`predict`.
            arrays (dict[str, Tensor]): Targets by name: maps (B, C, H, W), maps of classes (B, 1, H, W) or (B, H, W),
                vectors (B, C), classes (B, ) or (B, 1); and the images by the name ``'inputs'``.
            masked_cells (Tensor): Masked cells, long, (B, M).
        """
        found = []
        for name, target in self.targets.items():
            array = arrays[target.source or name]
            if target.of_pixels:
                array = array.unsqueeze(1) if array.ndim == 3 else array
                array = gather(array, masked_cells, self.cell).unflatten(1, (masked_cells.shape[1], -1))
            array = self._prepared(name, array)
            try:
                found.append(target.terms(predicted[name], array))
            except UserError as error:
                raise UserError(f'target {name!r}: {error}') from None
        sums, counts = zip(*found)
        kind = statistics_dtype(sums[0].dtype)
        return torch.stack([one.to(kind) for one in sums]), torch.stack(counts)

    def _prepared(self, name: str, array: Tensor) -> Tensor:
        return self.targets[name].prepare(array, getattr(self, f'mean_of_{name}'), getattr(self, f'std_of_{name}'))

    def _images(self) -> tuple[str, PixelValues]:
        name = self.reconstructs
        if name is None:
            raise UserError(
                'no target reconstructs the images, so there is nothing to draw: add one with '
                "dict(type='PixelValues', source='inputs', channels=...), or leave ReconstructionHook out"
            )
        target = self.targets[name]
        assert isinstance(target, PixelValues)
        return name, target

    def forward(self, decoded: Tensor, masked_cells: Tensor) -> Tensor:
        """Predict the images' own pixels in masked cells, (B, M, cell * cell * C), as ``FCMAEHead``."""
        name, _ = self._images()
        patch = self.cell // self.stride
        predicted = self.preds[name](gather(decoded, masked_cells, patch))
        return pixels_of_cells(predicted, masked_cells, patch, self.stride).flatten(2)

    def target(self, images: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels of cells (B, M, cell * cell * C), mean and deviation (B, M, 1), as ``FCMAEHead``."""
        name, target = self._images()
        pixels = gather(images, cells, self.cell).unflatten(1, (cells.shape[1], -1))
        pixels = self._prepared(name, pixels)
        values, mean, deviation = target.normalised(pixels, pixels.isnan())
        return values.flatten(2), mean.flatten(2), deviation.flatten(2)


@MODELS.register_module()
class MPMAE(FCMAE):
    """FCMAE with several targets per image: mask, encode, decode, one loss per target, weighted sum.

    Images may hold NaN where a value is missing: the encoder reads 0 there, the mean of normalised images, and the loss
    leaves it out.

    Args:
        backbone (dict): Config of ``ConvNeXtV2`` with ``out_indices=(3, ), out_norm=False``. Its stem sets the side of
            a cell: 16 pixels with ``stem=dict(type='ConvStem', stride=2)``.
        neck (dict): Config of the decoder, as of :class:`FCMAE`.
        head (dict): Config of ``MultiTargetHead``.
        weighting (str | dict[str, float]): ``'uncertainty'``, weights learned as by Kendall et al. (arXiv 1705.07115);
            ``'equal'``; or fixed weights by target, 1 for those not named. Defaults to ``'uncertainty'``.
        execution (str): Execution of the encoder. Defaults to ``'packed'``.
        response_norm (dict | str, optional): See :class:`FCMAE`. Defaults to ``'own'``.
        data_preprocessor (dict, optional): See :class:`FCMAE`. Defaults to None.
        init_cfg (dict, optional): See :class:`FCMAE`. Defaults to None.

    Raises:
        ValueError: If the head does not predict targets, an argument is not valid, or the backbone has
            ``valid_sites=True``, which counts pixels of all bands together.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        weighting: str | dict[str, float] = 'uncertainty',
        execution: str = 'packed',
        response_norm: dict | str | None = 'own',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, execution, response_norm, data_preprocessor, init_cfg)
        if not isinstance(self.head, MultiTargetHead):
            raise UserError(f"model.head.type={head['type']!r}: MPMAE needs head=dict(type='MultiTargetHead', ...)")
        if self.backbone.valid_sites:
            raise UserError(
                'model.backbone.valid_sites=True: MPMAE reads missing values as 0 and leaves them out of its losses, '
                'band by band; set valid_sites=False'
            )
        self.weighting = build_loss_weights(weighting, list(self.head.targets))

    def forward(
        self,
        inputs: Tensor,
        data_samples: list | None = None,
        mode: str = 'tensor',
        targets: dict[str, Tensor] | None = None,
    ) -> Tensor | dict[str, Tensor] | tuple:
        """Forward as mmpretrain's algorithms; ``targets`` are needed for the loss."""
        if mode == 'loss':
            return self.loss(inputs, data_samples or [], targets)
        return super().forward(inputs, data_samples, mode)

    def loss(  # type: ignore[override]  # targets are an argument of their own
        self, inputs: Tensor, data_samples: list, targets: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the total as ``loss``, and what is logged: each target's loss and weight.

        The loss of a target that no sample of the batch has is 0, and so are its gradients.

        Args:
            inputs (Tensor): Normalised images (B, C, H, W), NaN where missing.
            data_samples (list): Data samples with ``visible_cells``.
            targets (dict[str, Tensor], optional): Targets by name, see :meth:`MultiTargetHead.terms`.

        Raises:
            ValueError: If a target is not in the batch, or its array does not fit.
        """
        cells = stack_visible_cells(data_samples, inputs.device, cell_of(self.backbone))
        self._check(inputs, targets or {})
        sums, counts = self.masked_loss(inputs, cells, targets or {})
        losses, present = _average(sums, counts)
        total, weights = self.weighting(losses, present)
        logged = {'loss': total}
        for number, name in enumerate(self.head.targets):
            logged[f'loss/{name}'] = losses[number].detach()
            logged[f'weight/{name}'] = weights[number]
        return logged

    def masked_loss(  # type: ignore[override]
        self, inputs: Tensor, visible_cells: Tensor, targets: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the sums of errors and the numbers of terms of all targets, (T, ) each."""
        images = torch.where(inputs.isnan(), 0, inputs)
        features = self.backbone(images, visible_cells, self.execution)
        decoded = self.neck(features, visible_cells)
        masked_cells = self._masked_cells(visible_cells, inputs)
        predicted = self.head.predict(decoded, last_map(features), visible_cells, masked_cells)
        return self.head.terms(predicted, {**targets, INPUTS: inputs}, masked_cells)

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total, and everything that is logged; mmengine would add up what has "loss" in its name."""
        return losses['loss'], losses

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, visible_cells: Tensor) -> dict[str, Tensor]:
        """Return reconstructions of the images as :meth:`FCMAE.reconstruct`; missing values are 0."""
        self.head._images()
        return super().reconstruct(torch.where(inputs.isnan(), 0, inputs), visible_cells)

    def _check(self, inputs: Tensor, targets: dict[str, Tensor]) -> None:
        """Raise ``ValueError`` if images or targets have other names or shapes than the head expects."""
        if inputs.shape[1] != self.backbone.in_channels:
            raise UserError(
                f'the images have {inputs.shape[1]} bands, but model.backbone has in_channels='
                f'{self.backbone.in_channels}: set it to the sum of the bands in dataset.inputs'
            )
        lacking = [name for name in self.head.arrays if name not in targets]
        if lacking:
            raise UserError(
                f'the samples have the targets {sorted(targets)}, but model.head.targets names {lacking}, too: give '
                'train_dataloader.dataset.targets and model.head.targets the same names'
            )
        for name in self.head.arrays:
            target, shape = self.head.targets[name], tuple(targets[name].shape)
            depth = target.depth
            size = tuple(inputs.shape[-2:]) if target.of_pixels else ()
            wanted = [(len(inputs), depth, *size)] + ([(len(inputs), *size)] if depth == 1 else [])
            if shape not in wanted:
                raise UserError(f'target {name!r} has shape {shape}: expected {wanted[0]}, batch first')


def _average(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of targets, zero where there is no term, and whether there is one, (T, ) each.

    In a distributed run counts are averaged over processes, so that gradients, which are averaged too, are those of one
    process with all images.
    """
    counts = counts.to(sums.dtype)
    if get_world_size() > 1:
        all_reduce(counts, 'mean')
    present = counts > 0
    return torch.where(present, sums / torch.where(present, counts, 1), 0), present
