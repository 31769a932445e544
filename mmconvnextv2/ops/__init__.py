"""Fused operations: one public function each, its plain reference beside it."""
from .response_mlp import response_mlp, response_mlp_reference

__all__ = ['response_mlp', 'response_mlp_reference']
