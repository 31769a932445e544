"""Follow docs/installed.md with the installed package, outside the clone: its configs are written, its commands run,
and what they print is compared with the page but for numbers.

Run by test_packaging.py and by sessions of noxfile.py: ``python wheel_story.py FOLDER [--mim] [--without-ops]``. Every
command is printed before it runs; one that fails ends the story. ``--mim`` trains and tests through OpenMMLab's mim,
``--without-ops`` leaves out detection, which needs mmcv's compiled operations.
"""

import re
import subprocess
import sys
from pathlib import Path

from pages import BLOCK, commands_in, not_printed

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'installed.md'
FILE = re.compile(r'^```python title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
DETECTION = re.compile(r'^## Detect\n.*?(?=^## )', re.MULTILINE | re.DOTALL)
PLACE = 'import mmconvnextv2; print(mmconvnextv2.__file__)'
COMPARISON = """
import torch
from mmconvnextv2.checkpoint import to_canonical, extract_state_dict
from mmconvnextv2.checkpoint.load import load_file
one, two = (to_canonical(extract_state_dict(load_file(path))) for path in ('segment/iter_40.pth', 'back.safetensors'))
assert all(torch.equal(one[key], two[key]) for key in two)
assert all(key.startswith('norm') for key in one.keys() - two.keys()), one.keys() - two.keys()
"""


def run(folder: Path, *command: str) -> str:
    """Run a command and return what it printed."""
    print('$', Path(command[0]).name, *command[1:], flush=True)
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f'{done.stdout[-6000:]}\nfailed with status {done.returncode}')
    return done.stdout


def by_mim(words: list) -> list:
    """Return a command of mim's for ``python -m mmconvnextv2 train`` and ``test``, others as they are."""
    mim = str(Path(sys.executable).parent / 'mim')
    if words[3:4] == ['train']:
        return [mim, 'train', 'mmconvnextv2', words[4], '--gpus', '0', *words[5:]]
    if words[3:4] == ['test']:
        return [mim, 'test', 'mmconvnextv2', words[4], '--checkpoint', *words[5:]]
    return words


def check_place(folder: Path) -> None:
    """The package is not the clone's, and no link of it leads out of there."""
    home = Path(run(folder, sys.executable, '-c', PLACE).split()[-1]).parent
    assert home != ROOT / 'mmconvnextv2', home
    assert not [path for path in home.rglob('*') if path.is_symlink()]


def follow(folder: Path, page: str, through_mim: bool) -> None:
    """Write the page's files, run its commands except for those that install, and compare what they print."""
    for name, content in FILE.findall(page):
        (folder / name).write_text(content)
    printed = ''
    for language, block in BLOCK.findall(page):
        commands = list(commands_in(block)) if language == '' else []
        for words in commands:
            if words[0] == 'python':
                words = [sys.executable, *words[1:]]
                printed = run(folder, *(by_mim(words) if through_mim else words))
        if language == 'text':
            missing = not_printed(block, printed)
            assert not missing, f'not printed: {missing}\nbut: {printed[-6000:]}'
            print(block, end='')


def main() -> None:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    check_place(folder)
    page = PAGE.read_text()
    if '--without-ops' in options:
        page = DETECTION.sub('', page)
        print('no detection: mmcv has no compiled operations here')
    follow(folder, page, '--mim' in options)
    run(folder, sys.executable, '-c', COMPARISON)
    print('the story ended well')


if __name__ == '__main__':
    main()
