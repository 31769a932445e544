"""The package's imports run one way, from shelf to shelf and from module to module, its root holds three files, and the
pages that lead into the code name what is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / 'mmconvnextv2'
SHELVES = [
    'version',
    'utils',
    'mmcv_operators',
    'ops',
    'models',
    'datasets',
    'checkpoint',
    'engine',
    'pretrain',
    'analysis',
    'export',
    'commands',
]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_of(path): path for path in ROOT.rglob('*.py') if '.mim' not in path.parts}


def imports_of(name):
    """Return the modules of the package that a module imports, inside functions too."""
    path, found = MODULES[name], set()
    package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or '').split('.')
            base = '.'.join(part for part in base if part)
            found |= {
                f'{base}.{each.name}'.strip('.') if f'{base}.{each.name}'.strip('.') in MODULES else base
                for each in node.names
            }
    return found - {name}


@pytest.mark.parametrize('name', sorted(set(MODULES) - {'', '__main__'}))
def test_imports_run_down(name):
    """No module imports from a shelf above its own."""
    own = SHELVES.index(name.partition('.')[0])
    assert not [other for other in imports_of(name) if SHELVES.index(other.partition('.')[0]) > own]


def test_modules_have_no_circles():
    """Modules can be put in an order in which each imports only earlier ones; a package's face is left out."""
    faces = {name for name, path in MODULES.items() if path.name == '__init__.py'}
    waiting = {name: imports_of(name) - faces for name in set(MODULES) - faces}
    while waiting:
        ready = {name for name, needed in waiting.items() if not needed & set(waiting)}
        assert ready, waiting
        waiting = {name: needed for name, needed in waiting.items() if name not in ready}


def test_root_is_empty():
    """Besides packages the root holds its face, the command and the version."""
    assert {path.name for path in ROOT.glob('*.py')} == {'__init__.py', '__main__.py', 'version.py'}


@pytest.mark.parametrize('page', ['docs/house.md', 'docs/paper.md'])
def test_pages_point_at_what_is_there(page):
    """Every name that a page puts after a linked file is defined in it, and every pattern of configs matches some."""
    text, pointed = (ROOT.parent / page).read_text(), 0
    for path, names in re.findall(r'\]\(\.\./(\S+\.py)\)((?:,? `\w+`)+)', text):
        defined = {node.name for node in ast.walk(ast.parse((ROOT.parent / path).read_text())) if hasattr(node, 'name')}
        assert set(re.findall(r'`(\w+)`', names)) <= defined, path
        pointed += 1
    for pattern in re.findall(r'`(configs/\S*\*\S*)`', text):
        assert list(ROOT.parent.glob(pattern)), pattern
    assert pointed > 5
