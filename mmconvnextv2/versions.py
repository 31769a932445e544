"""Which versions of the stack work; a wrong one is refused in one sentence, an absent package is fine."""
from importlib import metadata
from typing import Iterator

from packaging.version import Version

# distribution: (first version that works, first version that does not)
WORKING = {
    'torch': ('2.1', '3'),
    'mmengine': ('0.10.4', '1'),
    'mmcv': ('2.1.0', '2.2.0'),
    'mmdet': ('3.3.0', '4'),
    'mmsegmentation': ('1.2.2', '2'),
    'mmpretrain': ('1.2.0', '2'),
}


def wrong_versions() -> Iterator[str]:
    """Yield a sentence for each installed package of the stack whose version is not known to work."""
    for name, (first, bound) in WORKING.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if not Version(first) <= Version(found) < Version(bound):
            yield f'{name} {found} is installed, mmconvnextv2 works with {name} >= {first}, < {bound}'


def check_versions() -> None:
    """Raise ``ImportError`` that names what was found and what works.

    Raises:
        ImportError: If a package of the stack is installed in a version outside ``WORKING``.
    """
    wrong = list(wrong_versions())
    if wrong:
        raise ImportError('; '.join(wrong) + '. The tested set is requirements/lock.txt.')
