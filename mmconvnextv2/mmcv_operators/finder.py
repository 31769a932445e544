"""Finder that provides ``mmcv._ext``, the module of compiled operators, from torchvision if mmcv has not compiled it.

``install-operators`` copies this file next to a ``.pth`` file that runs it at each start of Python. It must therefore
import only the standard library, and print nothing.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location

NAME = 'mmcv._ext'
SWITCH = 'MMCONVNEXTV2_OPERATORS'
CHOICES = ('', 'torchvision', 'compiled')


class OperatorsFinder:
    """Finder of the replacement for ``mmcv._ext``, an entry of :data:`sys.meta_path`."""

    serves = NAME

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        """Return the replacement's spec, or None for any other module.

        Raises:
            ImportError: If the environment variable ``MMCONVNEXTV2_OPERATORS`` has an unknown value, or torchvision is
                not installed.
        """
        if name != NAME:
            return None
        choice = os.environ.get(SWITCH, '')
        if choice not in CHOICES:
            raise ImportError(
                f'{SWITCH}={choice!r} is unknown: expected torchvision, compiled, or unset (the compiled '
                'operators of mmcv if it has them, otherwise those of torchvision)',
                name=NAME,
            )
        package = find_spec('mmconvnextv2')
        if choice == 'compiled' or package is None:
            return None
        if find_spec('torchvision') is None:
            raise ImportError(
                'mmcv has no compiled operators here, and torchvision, which replaces them, is not '
                'installed: pip install torchvision, the version that matches your torch',
                name=NAME,
            )
        folder = next(iter(package.submodule_search_locations))
        return spec_from_file_location(NAME, os.path.join(folder, 'mmcv_operators', 'extension.py'))


def register() -> None:
    """Make ``mmcv._ext`` importable if mmcv has no compiled operators.

    The finder is appended after all others, so a compiled extension takes precedence. That includes a broken one, which
    must fail as it would without this package. With ``MMCONVNEXTV2_OPERATORS=torchvision`` the finder comes first, for
    an mmcv that was compiled only for the CPU on a machine with a GPU. A second call changes nothing.
    """
    if any(getattr(finder, 'serves', None) == NAME for finder in sys.meta_path):
        return
    if os.environ.get(SWITCH) == 'torchvision':
        sys.meta_path.insert(0, OperatorsFinder)
    else:
        sys.meta_path.append(OperatorsFinder)
