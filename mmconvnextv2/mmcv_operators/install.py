"""Make mmcv's operators available to all Python processes of this environment, even if mmdet is imported first.

    python -m mmconvnextv2 install-operators [--remove]

Writes ``mmconvnextv2_operators.pth``, which Python reads at each start, and a copy of ``finder.py``, which the former
imports, to the site-packages of this interpreter. torch is not imported at start, only with an operator. Nothing is
compiled or downloaded. Run as a script, this file needs only the standard library.
"""

import sys
import sysconfig
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

MODULE = '_mmconvnextv2_operators'
PTH = 'mmconvnextv2_operators.pth'


def main(argv: Sequence[str] | None = None, folder: str | None = None) -> None:
    """Write or remove the two files.

    Args:
        argv (Sequence[str], optional): Command-line arguments. Defaults to None, those of the process.
        folder (str, optional): Folder of the two files. Defaults to None, the site-packages of this interpreter.
    """
    parser = ArgumentParser(
        prog='python -m mmconvnextv2 install-operators',
        description=__doc__.split('\n')[0],
        epilog='Example: python -m mmconvnextv2 install-operators',
    )
    parser.add_argument('--remove', action='store_true', help='remove the two files')
    remove = parser.parse_args(argv).remove
    folder = Path(folder or sysconfig.get_path('purelib'))
    finder, pth = folder / f'{MODULE}.py', folder / PTH
    try:
        if remove:
            pth.unlink(missing_ok=True)
            finder.unlink(missing_ok=True)
            print(f'removed from {folder}')
            return
        finder.write_text(Path(__file__).with_name('finder.py').read_text())
        pth.write_text(f'import {MODULE}; {MODULE}.register()\n')
    except OSError as error:
        sys.exit(f'error: {error.filename}: {error.strerror}; use an environment with write permission')
    print(f'wrote {pth}: mmdet, mmseg and mmcv.ops can now be imported in any order; undo with --remove')
    if not any(metadata_of(name) for name in ('mmcv', 'mmcv-lite', 'onedl-mmcv')):
        print("mmcv is not installed: pip install 'mmconvnextv2[ops]'")


def metadata_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


if __name__ == '__main__':
    main()
