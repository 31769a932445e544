"""Executions: which sites of an image a forward visits, and how. One class per execution, chosen by name."""

from ...ops.grid import CELL, Grid
from ...utils.errors import UserError
from .base import Execution, check_images, mask_to_visible_cells
from .dense import Dense
from .masked import Leaky, Masked
from .minkowski import Minkowski
from .packed import Packed

EXECUTIONS = {cls.name: cls for cls in (Dense, Masked, Packed, Minkowski, Leaky)}


def get_execution(name: str, masking: bool) -> Execution:
    """Return the execution called ``name``.

    Args:
        name (str): Key of ``EXECUTIONS``.
        masking (bool): Whether the forward has visible cells.

    Raises:
        ValueError: If the name is unknown, or the execution cannot be used with (or without) visible cells.
    """
    if name not in EXECUTIONS:
        raise UserError(f'execution={name!r} is unknown: choose from {sorted(EXECUTIONS)}')
    if EXECUTIONS[name].masks != masking:
        raise UserError(
            f'execution={name!r} {"needs" if not masking else "cannot use"} visible_cells: '
            f'choose from {sorted(n for n, e in EXECUTIONS.items() if e.masks == masking)}'
        )
    return EXECUTIONS[name]()


__all__ = ['CELL', 'EXECUTIONS', 'Execution', 'Grid', 'check_images', 'get_execution', 'mask_to_visible_cells']
