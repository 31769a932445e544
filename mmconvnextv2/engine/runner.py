"""mmengine's runner with errors that name the hook, evaluator or data loader in which a library's code failed."""

from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..utils.errors import UserError, place_of, raised_in_library
from .console import discarded_stderr, quiet_console
from .pipelines import name_files

EXPLAINED = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


def _explain(where: str, error: Exception) -> str:
    reason = ' '.join(str(error).split()).rstrip('.') or 'no reason given'
    return (
        f'{where} failed with {type(error).__name__}: {reason[:500]}. Check its arguments in the config; '
        '--traceback shows where'
    )


class NamingEvaluator(Evaluator):
    """mmengine's ``Evaluator`` that reports a library's error in one line with the names of its metrics."""

    def process(self, *args, **kwargs) -> None:
        """Process a batch; see ``Evaluator``."""
        self._run(super().process, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, Any]:
        """Compute the metrics; see ``Evaluator``."""
        return self._run(super().evaluate, *args, **kwargs)

    def _run(self, step: Any, *args, **kwargs) -> Any:
        try:
            return step(*args, **kwargs)
        except UserError:
            raise
        except EXPLAINED as error:
            if not raised_in_library(error):
                raise
            names = ', '.join(type(metric).__name__ for metric in self.metrics)
            raise UserError(_explain(f'val_evaluator or test_evaluator ({names})', error)) from error


class NamingRunner(Runner):
    """mmengine's ``Runner`` that reports libraries' errors in data loaders, transforms, hooks and metrics in one line.

    Errors raised by the user's code or by this package are raised unchanged.
    """

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger; see ``Runner``. ``verbose=True`` in the config shows on the console all that is logged."""
        logger = super().build_logger(*args, **kwargs)
        if not self.cfg.get('verbose'):
            quiet_console(logger)
        return logger

    def _log_env(self, env_cfg: dict) -> None:
        """Log the environment; see ``Runner``. The shell's complaint about a missing compiler is discarded."""
        with discarded_stderr():
            super()._log_env(env_cfg)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a data loader; see ``Runner``."""
        try:
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        except UserError:
            raise
        except EXPLAINED as error:
            if place_of(error).partition('.')[0] != 'torch':  # errors of a data set are explained where it is built
                raise
            given = {key: dataloader.get(key) for key in ('batch_size', 'num_workers')}
            raise UserError(_explain(f'a data loader with {given}', error)) from error
        name_files(loader.dataset)
        return loader

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        """Build an evaluator; see ``Runner``."""
        built = super().build_evaluator(evaluator)
        return NamingEvaluator(built.metrics) if type(built) is Evaluator else built

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """Call all hooks; see ``Runner``."""
        for hook in self._hooks:
            if hasattr(hook, fn_name):
                try:
                    getattr(hook, fn_name)(self, **kwargs)
                except UserError:
                    raise
                except EXPLAINED as error:
                    if not raised_in_library(error):
                        raise
                    raise UserError(_explain(f'the hook {type(hook).__name__}', error)) from error
