"""CompileBackboneHook: torch.compile for the backbone of a detector, or for the whole forward and loss of FCMAE."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ...utils.errors import UserError
from ..model_state import unwrapped

DYNAMIC = ('eager', 'aot_eager')  # backends that take graphs of any size; inductor of torch 2.11 fails on them
MOST_SIZES = 64  # graphs of the backbone


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile ``model.backbone`` in place before training, which keeps the names in checkpoints.

    Models with a method ``compile_loss(**options)``, such as FCMAE, compile forward and loss as one graph instead, for
    the image size that they have.
    Evaluations run uncompiled, since their images have many sizes.

    Inductor compiles each image size separately. When a second size appears, batches are from there on padded to
    multiples of ``bucket`` pixels, if the data preprocessor can (mmdet's), which leaves few sizes; after 64, further
    sizes run uncompiled. The backends ``eager`` and ``aot_eager`` compile one graph of the backbone for all sizes.

    Args:
        backend (str): Name from ``torch.compiler.list_backends()``. Defaults to ``'inductor'``.
        mode (str, optional): Name from ``torch._inductor.list_mode_options()``, for inductor only;
            ``'reduce-overhead'`` captures CUDA graphs. Defaults to None, inductor's default.
        bucket (int): Pixels of which padded sides are multiples; a multiple of 32. Defaults to 128.

    Raises:
        ValueError: If ``bucket`` is not a multiple of 32, or a mode is given for another backend.
    """

    def __init__(self, backend: str = 'inductor', mode: str | None = None, bucket: int = 128) -> None:
        if bucket < 32 or bucket % 32:
            raise UserError(f'bucket={bucket} of CompileBackboneHook: expected a multiple of 32 pixels')
        if mode is not None and backend != 'inductor':
            raise UserError(f'mode={mode!r} of CompileBackboneHook: only inductor has modes, not {backend!r}')
        self.backend, self.mode, self.bucket = backend, mode, bucket
        self._sizes: set[tuple[int, int]] = set()
        self._preprocessor: Any = None  # one that may have to pad more
        self._divisor = 0  # what it padded to before

    def before_train(self, runner: Runner) -> None:
        """Mark the backbone for compilation, which happens in the first forward."""
        model = unwrapped(runner.model)
        options: dict[str, Any] = dict(backend=self.backend, dynamic=False)
        options |= dict(mode=self.mode) if self.mode else {}
        what, sizes = 'forward and loss, as one graph', 'once per image size'
        if hasattr(model, 'compile_loss'):
            model.compile_loss(**options)
        elif self.backend in DYNAMIC:
            model.backbone.compile(**options | dict(dynamic=True))
            what, sizes = 'the backbone', 'all image sizes share a graph'
        else:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_SIZES)
            model.backbone.compile(**options)
            self._preprocessor, what = _padding(model), 'the backbone'
        how = f'{self.backend}, mode {self.mode}' if self.mode else self.backend
        runner.logger.info(f'compiling {what} with {how}, {sizes}: the first iterations take longer')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Pad more from the second image size on."""
        if self._preprocessor is None or self._divisor:
            return
        self._sizes.add(_padded_size(data_batch, self._preprocessor.pad_size_divisor))
        if len(self._sizes) > 1:
            self._divisor, self._preprocessor.pad_size_divisor = self._preprocessor.pad_size_divisor, self.bucket
            runner.logger.info(
                f'images have several sizes, each of which is compiled: batches are padded to multiples of '
                f'{self.bucket} pixels in training, which leaves few sizes. bucket of CompileBackboneHook sets it'
            )

    def before_val(self, runner: Runner) -> None:
        """Evaluate without compiled code, and with the padding of the recipe."""
        torch.compiler.set_stance('force_eager')
        if self._divisor:
            self._preprocessor.pad_size_divisor = self._divisor

    def after_val(self, runner: Runner) -> None:
        """Go back to compiled code and more padding."""
        torch.compiler.set_stance('default')
        if self._divisor:
            self._preprocessor.pad_size_divisor = self.bucket


def _padding(model: nn.Module) -> Any:
    """Return a model's data preprocessor if it can pad a batch to other multiples, or None."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    return preprocessor if getattr(preprocessor, 'pad_size_divisor', None) else None


def _padded_size(data_batch: Any, divisor: int) -> tuple[int, int]:
    """Return the height and width of a batch from a data loader after padding to multiples of a number."""
    inputs = data_batch['inputs'] if isinstance(data_batch, dict) else []
    images = [inputs] if isinstance(inputs, Tensor) else [image for image in inputs if isinstance(image, Tensor)]
    height, width = (max((image.shape[side] for image in images), default=0) for side in (-2, -1))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
