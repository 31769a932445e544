"""Hooks for training runs."""

from .checkpoint import VerifiedCheckpointHook
from .compile_backbone import CompileBackboneHook
from .early_stopping import BestScoreStoppingHook
from .finite_loss import FiniteLossHook
from .matching_weights import MatchingWeightsHook, skip_initial_weights_on_resume
from .mistakes import MistakesHook
from .preemption import PreemptionHook
from .progress import ProgressHook
from .resume import ResumeHook
from .runtime_info import DeferredRuntimeInfoHook

__all__ = [
    'BestScoreStoppingHook',
    'CompileBackboneHook',
    'DeferredRuntimeInfoHook',
    'FiniteLossHook',
    'MatchingWeightsHook',
    'MistakesHook',
    'PreemptionHook',
    'ProgressHook',
    'ResumeHook',
    'VerifiedCheckpointHook',
    'skip_initial_weights_on_resume',
]
