"""The set-up refuses, before any download, a machine it cannot work on; it repeats in no time and survives Ctrl-C.

The script under test is the real one; where a test lets it go on, the interpreter it is given makes an environment
whose Python only writes down what was asked of it, so that nothing is fetched.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'requirements' / 'install.sh'
LOCK_HASH = hashlib.sha256((ROOT / 'requirements' / 'lock.txt').read_bytes()).hexdigest()[:16]
REAL_PYTHON = Path(sys.base_prefix) / 'bin' / 'python3.11'
TOOLS = (
    'awk bash c++ cat chmod cp cut df dirname du env find grep head ls mkdir mv rm sed sha256sum sleep tail touch uname'
)
ROOM = 'echo; echo "disk 100 50 52428800 50% /"'
GPU = 'echo "GPU 0: one"'
NVCC = 'echo "Cuda compilation tools, release 13.0, V13.0.1"'

# "python" before the environment exists: everything but "-m venv" goes to the real interpreter.
OUTSIDE = """#!/bin/bash
case "$*" in
*"import venv"*) [ ! -e {home}/no-venv ] ;;
"-m venv"*) mkdir -p "$3/bin"; cp {home}/inside "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
*) exec {real} "$@" ;;
esac
"""
# "python" of the environment: notes what it is asked for, and answers what the set-up wants to know.
INSIDE = """#!/bin/bash
[ "$1" = -c ] || echo "$@" >> {home}/asked
case "$*" in
*get_compiling_cuda_version*) cat {home}/mmcv-cuda ;;
*torch.__version__*) echo 2.11.0 ;;
*"pip wheel"*) mkdir -p "${{@: -2:1}}"; touch "${{@: -2:1}}/mmcv-2.1.0-any.whl" ;;
*"pip install"*torchvision*) [ ! -e {home}/slow ] || {{ echo $$ > {home}/busy; sleep 60 & sleep 60; }} ;;
esac
"""


class Machine:
    """A PATH of chosen tools, an interpreter without a network, and the set-up run on them."""

    choice = {}  # environment variables of every run

    def __init__(self, home):
        self.home, self.tools, self.venv = home, home / 'bin', home / 'venv'
        self.tools.mkdir()
        for tool in TOOLS.split():
            (self.tools / tool).symlink_to(shutil.which(tool))
        self.put('df', '#!/bin/bash\n' + ROOM)
        self.put('python3.11', OUTSIDE.format(home=home, real=REAL_PYTHON))
        (home / 'inside').write_text(INSIDE.format(home=home))
        (home / 'inside').chmod(0o755)
        (home / 'mmcv-cuda').write_text('not available')

    def put(self, tool, text):
        path = self.tools / tool
        path.unlink(missing_ok=True)
        path.write_text(text if text.startswith('#!') else f'#!/bin/bash\n{text}\n')
        path.chmod(0o755)

    def start(self, *arguments, python='python3.11', **environment):
        environment = {
            **self.choice,
            'PATH': str(self.tools),
            'PYTHON': str(python),
            'HOME': str(self.home),
            **environment,
        }
        heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background deaf
        try:
            return subprocess.Popen(
                ['bash', SCRIPT, self.venv, *arguments],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, heard)

    def run(self, *arguments, **kwargs):
        process = self.start(*arguments, **kwargs)
        process.stdout_text, process.stderr_text = process.communicate(timeout=60)
        return process

    def asked(self):
        """What the environment's Python was asked for since the last call."""
        log = self.home / 'asked'
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def compiling(machine):
    """A machine on which the compiled operators of mmcv are asked for."""
    machine.choice = {'OPS': 'compiled'}
    return machine


def assert_refused(result, *words):
    lines = result.stderr_text.strip().splitlines()
    assert result.returncode == 1 and len(lines) == 1, result.stderr_text
    assert all(word in lines[0] for word in words), lines


def assert_nothing_written(machine):
    assert not machine.venv.exists() and machine.asked() == []


def assert_ends(group):
    """Every process of the group is gone within seconds (far less than the minute that the fake pip sleeps)."""
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)


def test_wrong_python(machine):
    """Another Python is named with its version and with what is needed."""
    machine.put('old-python', 'echo 3.9')
    assert_refused(machine.run(python='old-python'), 'old-python', '3.9', '3.11', 'PYTHON=')
    assert_nothing_written(machine)


def test_missing_python(machine):
    """An interpreter that is not there is named."""
    assert_refused(machine.run(python='no-python'), 'no-python', 'PYTHON=')
    assert_nothing_written(machine)


def test_no_venv_module(machine):
    """A Python without venv, as Debian ships it, is reported with the package to install."""
    (machine.home / 'no-venv').touch()
    assert_refused(machine.run(), 'venv', 'python3.11-venv')
    assert_nothing_written(machine)


def test_missing_compiler(compiling):
    """Without a C++ compiler, compiled operators are refused with the package that has one."""
    (compiling.tools / 'c++').unlink()
    assert_refused(compiling.run(), 'c++', 'g++')
    assert_nothing_written(compiling)


def test_nothing_is_compiled(machine):
    """Without a compiler, and with a GPU without a toolkit, mmcv-lite is installed from the lock and nothing built; a
    second run asks nothing."""
    (machine.tools / 'c++').unlink()
    machine.put('nvidia-smi', GPU)
    first = machine.run()
    assert first.returncode == 0, first.stderr_text
    steps = [line for line in machine.asked() if ' install ' in line or ' wheel ' in line]
    order = [next(i for i, step in enumerate(steps) if word in step) for word in ('torchvision==', 'rest.txt', '-e ')]
    assert order == list(range(3)) == list(range(len(steps)))
    rest = (machine.venv / 'rest.txt').read_text().splitlines()
    assert 'mmcv-lite==2.1.0' in rest and not any(line.startswith(('mmcv==', 'ninja')) for line in rest)
    assert (machine.venv / '.lock').read_text().strip() == f'{LOCK_HASH}-torchvision'
    started = time.monotonic()
    assert machine.run().returncode == 0
    assert machine.asked() == [] and time.monotonic() - started < 5


def test_unknown_operators(machine):
    """OPS takes two words; anything else is refused with both."""
    assert_refused(machine.run(OPS='torch'), "'torch'", 'torchvision', 'compiled')
    assert_nothing_written(machine)


def test_other_operators_replace_those_that_are_there(machine):
    """mmcv and mmcv-lite own one folder: both go before the other comes, and nothing else is installed again. Without a
    word, what is there stays."""
    assert machine.run().returncode == 0
    machine.asked()
    for environment, ops in (({'OPS': 'compiled'}, 'cpu'), ({}, 'cpu'), ({'OPS': 'torchvision'}, 'torchvision')):
        changed = machine.run(**environment)
        asked = machine.asked()
        assert changed.returncode == 0, changed.stderr_text
        assert (machine.venv / '.lock').read_text().strip() == f'{LOCK_HASH}-{ops}'
        if not environment:
            assert asked == []
            continue
        assert 'uninstall -y mmcv mmcv-lite' in asked[0]
        assert all('mmcv' in line or 'ninja==' in line for line in asked), asked


def test_no_disk(machine):
    """A full disk is reported with the free and the needed space."""
    machine.put('df', 'echo; echo "disk 100 97 3145728 97% /"')
    assert_refused(machine.run(), '3 GiB', '10 GiB', 'VENV=')
    assert_nothing_written(machine)


def test_impossible_place(machine):
    """A place below a file is refused by name."""
    (machine.home / 'file').touch()
    machine.venv = machine.home / 'file' / 'venv'
    assert_refused(machine.run(), str(machine.home / 'file'), 'VENV=')


@pytest.mark.parametrize('content', ['thesis.txt', 'pyvenv.cfg', '.lock'])
def test_foreign_folder(machine, content):
    """A folder that the set-up did not make, be it a virtual environment or hold a .lock, is left as it is."""
    machine.venv.mkdir()
    (machine.venv / content).write_text('years of work')
    assert_refused(machine.run(), 'not created by this set-up', 'VENV=')
    assert {path.name: path.read_text() for path in machine.venv.iterdir()} == {content: 'years of work'}


def test_missing_cuda_toolkit(compiling):
    """A GPU without nvcc is reported before anything is fetched, with the version needed and the way without."""
    compiling.put('nvidia-smi', GPU)
    assert_refused(compiling.run(CUDA_HOME=str(compiling.home)), 'CUDA toolkit 13.0', 'missing', 'FORCE_CUDA=0')
    compiling.put('nvcc', NVCC.replace('13.0', '11.8'))
    assert_refused(compiling.run(), 'CUDA toolkit 13.0', '11.8', 'OPS=compiled')
    assert_nothing_written(compiling)


def test_unknown_cuda_choice(machine):
    """FORCE_CUDA takes 0 and 1; anything else is refused with both."""
    assert_refused(machine.run(FORCE_CUDA='yes'), "'yes'", '0', '1')
    assert_nothing_written(machine)


def test_toolkit_is_the_one_of_the_locked_torch():
    """The CUDA version that the set-up requires is the one that the installed torch was built with."""
    torch = pytest.importorskip('torch')
    if torch.version.cuda is None:
        pytest.skip('this torch was built without CUDA')
    assert f'torch_cuda={torch.version.cuda} ' in SCRIPT.read_text()


def test_steps_of_compiling(compiling):
    """torch comes before mmcv, which is built without isolation and without a GPU's operators; a second run asks
    nothing."""
    first = compiling.run()
    assert first.returncode == 0, first.stderr_text
    assert 'CPU operators only' in first.stdout_text
    steps = [line for line in compiling.asked() if ' install ' in line or ' wheel ' in line]
    order = [
        next(i for i, step in enumerate(steps) if word in step)
        for word in ('torchvision==', 'rest.txt', 'ninja==', 'pip wheel', 'mmcv-2.1.0-any.whl', '-e ')
    ]
    assert order == list(range(6)) and len(steps) == 6
    assert '--no-build-isolation' in steps[3] and '--no-deps' in steps[1]
    assert compiling.run().returncode == 0 and compiling.asked() == []


def test_ctrl_c_leaves_nothing_running_and_the_next_run_goes_on(machine):
    """Ctrl-C ends pip and its children; the next run writes the broken step's files again, and only that step's."""
    (machine.home / 'slow').touch()
    process = machine.start()
    busy = machine.home / 'busy'
    while not (busy.exists() and busy.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    group = os.getpgid(int(busy.read_text()))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and 'run the same command to continue from here' in errors
    assert_ends(group)
    (machine.home / 'slow').unlink()
    machine.asked()
    again = machine.run()
    assert again.returncode == 0, again.stderr_text
    rewritten = [line for line in machine.asked() if '--ignore-installed' in line]
    assert len(rewritten) == 1 and 'torchvision==' in rewritten[0]
    assert machine.run().returncode == 0 and machine.asked() == []


def test_gpu_builds_cuda_ops_and_force_cuda_decides(compiling):
    """A GPU alone builds CUDA operators from source, FORCE_CUDA=0 rebuilds mmcv and nothing else, and each is said."""
    compiling.put('nvidia-smi', GPU)
    compiling.put('nvcc', NVCC)
    (compiling.home / 'mmcv-cuda').write_text('13.0')
    made = compiling.run()
    assert made.returncode == 0 and 'CUDA 13.0 operators' in made.stdout_text, made.stderr_text
    assert any('pip wheel' in line and '--no-binary mmcv' in line for line in compiling.asked())
    (compiling.home / 'mmcv-cuda').write_text('not available')
    changed = compiling.run(FORCE_CUDA='0')
    assert changed.returncode == 0 and 'CPU operators only' in changed.stdout_text, changed.stderr_text
    asked = compiling.asked()
    assert asked and all('mmcv' in line or 'ninja==' in line for line in asked)
    compiling.choice = {}
    assert 'OPS=torchvision' in compiling.run().stdout_text
    assert compiling.asked() == []


@pytest.mark.parametrize(
    'caps, given, architectures',
    [
        ('echo 9.0; echo 8.6; echo 9.0', {}, '9.0;8.6'),
        ('exit 9', {}, '7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX'),
        ('echo 9.0', {'TORCH_CUDA_ARCH_LIST': '8.0 9.0+PTX'}, '8.0 9.0+PTX'),
    ],
)
def test_cuda_ops_are_built_for_the_gpus_at_hand(compiling, caps, given, architectures):
    """CUDA operators are compiled for the architectures that the user names, otherwise for those of the visible GPUs,
    otherwise for the common ones; a kept build serves the same architectures only."""
    compiling.put('nvidia-smi', f'case "$*" in *compute_cap*) {caps} ;; *) {GPU} ;; esac')
    compiling.put('nvcc', NVCC)
    (compiling.home / 'mmcv-cuda').write_text('13.0')
    made = compiling.run(FORCE_CUDA='1', **given)
    assert made.returncode == 0, made.stderr_text
    assert f'TORCH_CUDA_ARCH_LIST={architectures} ' in (compiling.venv / 'install.log').read_text()
    kept = [path.name for path in compiling.home.rglob('torch-*')]
    assert any(f'-cuda-{architectures.replace(";", "_").replace(" ", "_")}-' in name for name in kept), kept


def test_cuda_ops_that_did_not_come_out_are_an_error(machine):
    """When CUDA operators were asked for, by FORCE_CUDA=1 alone too, and mmcv reports none, the set-up fails instead of
    leaving a CPU build behind."""
    machine.put('nvcc', NVCC)
    result = machine.run(FORCE_CUDA='1')
    assert result.returncode == 1 and 'without CUDA operators' in result.stderr_text
    assert not (machine.venv / '.lock').exists()


def test_changed_lock_makes_the_environment_anew(machine):
    """An environment of another lock is emptied, nothing of it stays."""
    machine.run()
    (machine.venv / '.lock').write_text('0' * 16 + '-cpu')
    (machine.venv / 'old-package').touch()
    result = machine.run()
    assert result.returncode == 0 and 'again' in result.stdout_text, result.stderr_text
    assert not (machine.venv / 'old-package').exists()
    assert (machine.venv / '.lock').read_text().strip() == f'{LOCK_HASH}-torchvision'


def test_missing_openblas(machine):
    """MinkowskiEngine without OpenBLAS is refused with the package to install, before anything is fetched."""
    assert machine.run().returncode == 0
    machine.asked()
    machine.put('ldconfig', 'echo "libc.so.6 => /lib/libc.so.6"')
    assert_refused(machine.run('minkowski'), 'OpenBLAS', 'libopenblas-dev')
    assert machine.asked() == []


def test_changed_lock_behind_a_link(machine):
    """Where VENV is a link to a folder, the folder is emptied too, and the link stays."""
    place = machine.home / 'elsewhere'
    place.mkdir()
    machine.venv.symlink_to(place)
    assert machine.run().returncode == 0
    (place / '.lock').write_text('0' * 16 + '-torchvision')
    (place / 'old-package').touch()
    result = machine.run()
    assert result.returncode == 0 and not (place / 'old-package').exists(), result.stderr_text
    assert machine.venv.is_symlink() and (place / '.lock').read_text().startswith(LOCK_HASH)


def test_settings_of_other_installs_do_not_reach_pip(machine):
    """What a user sets for pip and Python elsewhere leads no package to another place, and HOME may be unset."""
    seen = machine.home / 'seen'
    (machine.home / 'inside').write_text(INSIDE.format(home=machine.home) + f'env >> {seen}\n')
    names = ('PIP_TARGET', 'PIP_PREFIX', 'PIP_NO_DEPS', 'PIP_CONSTRAINT', 'PYTHONPATH', 'PYTHONHOME')
    machine.put('env', f'exec {shutil.which("env")} "$@"')
    environment = {
        **dict.fromkeys(names, '/elsewhere'),
        'PIP_USER': '1',
        'PIP_REQUIRE_VIRTUALENV': '1',
        'PIP_INDEX_URL': 'http://mirror',
    }
    started = subprocess.run(
        ['bash', SCRIPT, machine.venv],
        text=True,
        capture_output=True,
        env={'PATH': str(machine.tools), 'PYTHON': 'python3.11', **environment},
    )
    assert started.returncode == 0, started.stderr
    given = dict(line.partition('=')[::2] for line in seen.read_text().splitlines())
    assert not set(names) & set(given) and given['PIP_USER'] == given['PIP_REQUIRE_VIRTUALENV'] == '0'
    assert given['PIP_INDEX_URL'] == 'http://mirror' and given['HOME']


def test_two_at_once(machine):
    """While one set-up works, another there is refused and changes nothing; a killed one's lock is taken over."""
    (machine.home / 'slow').touch()
    first = machine.start()
    busy = machine.home / 'busy'
    while not (busy.exists() and busy.read_text()):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    machine.asked()
    second = machine.run()
    assert_refused(second, f'another set-up (process {first.pid})', 'wait')
    assert machine.asked() == []
    os.killpg(os.getpgid(int(busy.read_text())), signal.SIGKILL)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=20)
    (machine.home / 'slow').unlink()
    assert machine.run().returncode == 0
    assert not (machine.home / 'venv.setup-lock').exists()
