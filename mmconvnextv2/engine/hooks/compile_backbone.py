"""CompileBackboneHook: torch.compile for the backbone alone."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..model_state import unwrapped


@HOOKS.register_module()
class CompileBackboneHook(Hook):
    """Compile ``model.backbone`` in place before training, so that names in checkpoints stay.

    Each size of images is compiled on its own, since inductor of torch 2.11 fails on graphs of any size; after
    ``torch._dynamo.config.recompile_limit`` (8) of them, other sizes run uncompiled.

    Args:
        backend (str): One of ``torch.compiler.list_backends()``. Defaults to ``'inductor'``.
    """

    def __init__(self, backend: str = 'inductor') -> None:
        self.backend = backend

    def before_train(self, runner: Runner) -> None:
        """Compile; the work is done at the first forward."""
        model = unwrapped(runner.model)
        model.backbone.compile(backend=self.backend, dynamic=False)
        runner.logger.info(f'the backbone is compiled by {self.backend}: the first iterations take longer')
