"""Fused operations: one public function each, its plain reference beside it."""
from .depthwise import depthwise, depthwise_reference
from .dispatch import plain
from .grn import grn, grn_reference
from .response_mlp import response_mlp, response_mlp_reference

__all__ = ['depthwise', 'depthwise_reference', 'grn', 'grn_reference', 'plain', 'response_mlp',
           'response_mlp_reference']
