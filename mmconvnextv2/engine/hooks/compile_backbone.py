"""CompileBackboneHook: torch.compile for the backbone only."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..model_state import unwrapped


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile ``model.backbone`` in place before training, which keeps the names in checkpoints.

    Each image size is compiled separately, since inductor of torch 2.11 fails on graphs with dynamic shapes. After
    ``torch._dynamo.config.recompile_limit`` (8) sizes, further sizes run uncompiled.

    Args:
        backend (str): Name from ``torch.compiler.list_backends()``. Defaults to ``'inductor'``.
    """

    def __init__(self, backend: str = 'inductor') -> None:
        self.backend = backend

    def before_train(self, runner: Runner) -> None:
        """Mark the backbone for compilation, which happens in the first forward."""
        model = unwrapped(runner.model)
        model.backbone.compile(backend=self.backend, dynamic=False)
        runner.logger.info(f'compiling the backbone with {self.backend}: the first iterations take longer')
