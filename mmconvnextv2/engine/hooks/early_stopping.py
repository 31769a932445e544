"""BestScoreStoppingHook: early stopping whose state survives a resume."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ...utils.errors import UserError
from ...utils.suggestions import nearest

PATIENCE = 5
STATE = 'early_stopping'


@HOOKS.register_module()
class BestScoreStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook`` that counts any improvement of the best score and keeps counting after a resume.

    A checkpoint is written before the evaluation of the same iteration. A run resumed from it does not repeat that
    evaluation, which is therefore not counted.

    Args:
        monitor (str): Name of the metric as logged, ``'coco/bbox_mAP'``, or its last part, ``'bbox_mAP'``.
        rule (str, optional): Which scores are better, ``'greater'`` or ``'less'``. Defaults to None, inferred from the
            name.
        patience (int): Number of consecutive evaluations without improvement before the run stops. Defaults to 5.

    Raises:
        ValueError: If the rule cannot be inferred, or, at the first evaluation, if there is no such metric.
    """

    def __init__(self, monitor: str, rule: str | None = None, patience: int = PATIENCE) -> None:
        rule = rule or self._known_rule(monitor)
        super().__init__(monitor, rule, min_delta=1e-9, patience=patience)

    def _known_rule(self, monitor: str) -> str:
        try:
            return self._init_rule(monitor)
        except ValueError as error:
            raise UserError(
                f'early stopping on {monitor!r}: whether higher or lower is better is known only for names with '
                f'{", ".join(self._default_greater_keys)} (higher) or {", ".join(self._default_less_keys)} (lower). '
                'For another name set custom_hooks=[dict('
                f"type='{type(self).__name__}', monitor={monitor!r}, rule='greater')]."
            ) from error

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare with the best score, and end training after ``patience`` evaluations without improvement."""
        self.monitor = find_metric(self.monitor, list(metrics or {}))
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the best score and the count in the checkpoint."""
        checkpoint[STATE] = dict(best_score=float(self.best_score), wait_count=self.wait_count)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the best score and the count in a resumed run."""
        if runner._resume:
            vars(self).update(checkpoint.get(STATE, {}))


def find_metric(name: str, known: list[str]) -> str:
    """Return the logged name of a metric given by its full name or its last part.

    Raises:
        ValueError: If no metric or more than one matches; the message lists all metrics.
    """
    found = [one for one in known if one == name] or [one for one in known if one.rpartition('/')[2] == name]
    if len(found) == 1:
        return found[0]
    meant = nearest(name, known)
    hint = f'did you mean {meant!r}? ' if meant else ''
    raise UserError(f'metric {name!r}: {hint}available are {", ".join(known)}.')
