"""Checks of loaded weights: reject another model's checkpoint, and skip initial weights that a resume replaces."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...checkpoint.continued import PRETRAINED
from ...checkpoint.strict import check_weights
from ...checkpoint.whole_model import whole_model_weights


class MatchingWeightsHook(Hook):
    """Reject a checkpoint of another model, which mmengine would silently load in part.

    Public weights of the same model in another layout are renamed.

    Args:
        whole (bool): Whether every parameter must be in the checkpoint, as for resuming and testing. If False, as for
            ``load_from``, only the backbone's must, since heads may have other classes.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rename the weights and check them with :func:`check_weights`."""
        checkpoint['state_dict'] = whole_model_weights(checkpoint)
        model = runner.model.module if isinstance(runner.model, DistributedDataParallel) else runner.model
        model = model.module if isinstance(model, BaseTTAModel) else model
        if isinstance(model, nn.Module) and not is_model_wrapper(model):  # sharded parameters have other shapes
            check_weights(model, checkpoint, runner._load_from or '', self.whole)


def skip_initial_weights_on_resume(runner: Runner) -> bool:
    """Prevent a run that resumes from downloading or reading its initial weights.

    mmengine initialises the model before it resumes. Call this between building the runner and ``runner.train()``. It
    removes the pretrained initializers from the model's modules if there is a checkpoint to resume from.

    Returns:
        bool: Whether the run resumes from a checkpoint.
    """
    cfg = runner.cfg
    resumes = cfg.get('resume') and (cfg.get('load_from') or find_latest_checkpoint(runner.work_dir))
    if not resumes or not isinstance(runner.model, nn.Module):
        return bool(resumes)
    for module in runner.model.modules():
        given = getattr(module, 'init_cfg', None)
        if given:
            given = [given] if isinstance(given, dict) else given
            module.init_cfg = [cfg for cfg in given if cfg['type'] not in PRETRAINED]
    print_log('resuming: initial weights are not loaded', logger='current')
    return True
