"""Supported versions of the stack; a wrong version raises with one sentence, a missing package is allowed.

Upstream's packages have forks that are maintained for newer torch. A fork is another distribution of the same modules,
so an environment can hold only one of the two.
"""

import warnings
from collections.abc import Iterator
from importlib import metadata

from packaging.version import Version

# distribution: (first supported version, first unsupported version)
WORKING = {
    'torch': ('2.6', '3'),
    'mmengine': ('0.10.4', '1'),
    'mmcv': ('2.1.0', '2.2.0'),
    'mmdet': ('3.3.0', '4'),
    'mmsegmentation': ('1.2.2', '2'),
    'mmpretrain': ('1.2.0', '2'),
}
# The same modules without compiled operators, which torchvision's replace; see mmcv_operators
LITE = {'mmcv': 'mmcv-lite'}
# distribution of upstream: distribution of the fork
FORKS = {
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
}


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def name_and_version(distribution: str) -> str:
    """Return name and version of an installed distribution, or of its fork, such as ``'mmpretrain 1.2.0'``.

    Raises:
        PackageNotFoundError: If neither is installed.
    """
    names = [distribution, LITE.get(distribution), FORKS.get(distribution)]
    name = next((name for name in names if name and installed_version(name)), names[-1] or distribution)
    return f'{name} {metadata.version(name)}'


def wrong_versions() -> Iterator[str]:
    """Yield a sentence for each installed package of the stack whose version is not supported."""
    for distribution, (first, bound) in WORKING.items():
        for name in filter(None, (distribution, LITE.get(distribution))):
            found = installed_version(name)
            if found and not Version(first) <= Version(found) < Version(bound):
                yield f'{name} {found} is installed, mmconvnextv2 works with {name} >= {first}, < {bound}'


def check_versions() -> None:
    """Raise ``ImportError`` naming the unsupported versions and the supported ones.

    Raises:
        ImportError: If a package of the stack is installed in a version outside ``WORKING``.
    """
    wrong = list(wrong_versions())
    if wrong:
        raise ImportError('; '.join(wrong) + '. The tested set is requirements/lock.txt.')


def silence_pkg_resources() -> None:
    """Ignore setuptools' warning that mmengine and mmcv import pkg_resources: it is printed at each such import."""
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
