"""No code of the project runs what a file or a string holds."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ('mmconvnextv2', 'tools', 'benchmarks')
    for path in (ROOT / folder).rglob('*.py')
    if '.mim' not in path.parts
)
FORBIDDEN = {
    'eval',
    'exec',
    'os.system',
    'os.popen',
    'pickle.load',
    'pickle.loads',
    'torch.jit.load',
    'np.loadtxt',
    'subprocess.getoutput',
    'subprocess.getstatusoutput',
    'yaml.load',
}


def problems(source):
    """List calls that may run code: those forbidden, shells, and checkpoints or arrays read with pickle allowed."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name, options = ast.unparse(call.func), {one.arg: ast.unparse(one.value) for one in call.keywords}
        bad = (
            name in FORBIDDEN
            or options.get('shell', 'False') != 'False'
            or name == 'torch.load'
            and options.get('weights_only') != 'True'
            or name in ('np.load', 'numpy.load')
            and options.get('allow_pickle', 'False') != 'False'
        )
        found += [f'line {call.lineno}: {name}'] if bad else []
    return found


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    """No file of the package, tools and benchmarks evaluates strings, starts shells or unpickles freely."""
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    'source',
    [
        'torch.load(a)',
        'torch.load(a, weights_only=False)',
        'eval(a)',
        'subprocess.run(a, shell=True)',
        'np.load(a, allow_pickle=True)',
        'os.system(a)',
    ],
)
def test_the_search_finds(source):
    """What must not be there would be found."""
    assert len(problems(source)) == 1


def test_scripts_quote_what_they_are_given():
    """Shell scripts hand their arguments on quoted, and evaluate none."""
    for path in (path for folder in ('tools', 'benchmarks', 'requirements') for path in (ROOT / folder).rglob('*.sh')):
        text = path.read_text()
        assert 'eval ' not in text and ' $@' not in text and ' $*' not in text, path
