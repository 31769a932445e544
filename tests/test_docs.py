"""The documents are true: commands parse, files and names exist, and the quick commands run as described."""

import argparse
import ast
import importlib
import inspect
import itertools
import json
import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from pages import BLOCK, commands_in, expand, not_printed

from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.datasets import EmbeddedSpec, make_embedded
from mmconvnextv2.utils.config import load_config
from mmconvnextv2.utils.public_models import find_config, is_name
from mmconvnextv2.utils.suggestions import check_overrides

ROOT = Path(__file__).parents[1]
GUIDES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *sorted((ROOT / 'docs').glob('**/*.md')),
    ROOT / 'configs' / 'README.md',
    ROOT / 'configs' / 'custom' / 'README.md',
]
DOCUMENTS = [*GUIDES, ROOT / 'CHANGELOG.md', *sorted((ROOT / 'benchmarks').glob('**/*.md'))]
LINK = re.compile(r'(?<!`)\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)')
PLACEHOLDER = re.compile(r'(?<![\w-])[A-Z][A-Z_]+(?![\w-])')
IN_REPOSITORY = re.compile(r'(?:tools|configs|mmconvnextv2|tests|docs|benchmarks|requirements)/[\w./*-]*\w')
OPTION = re.compile(r'[a-z_]\w*(?:\.\w+)+=\S+|compile=True|runner_type=\w+')
SYSTEM = {'cd', 'ls', 'mkdir', 'pip', 'unzip'}  # of which only the first word is checked
PYTHON = {'.venv/bin/python', 'python'}
WRITTEN = {  # by tools/prepare.py, and what they inherit from
    'data/mine/config.py': 'configs/small/mask-rcnn_convnextv2-a_small.py',
    'data/street/config.py': 'configs/small/upernet_convnextv2-a_small.py',
    'work_dirs/quickstart/shapes/config.py': 'configs/small/convnextv2-a_small.py',
}
LAUNCHERS = {  # what a script starts, and which of its arguments it keeps
    'tools/dist_train.sh': ('tools/train.py', [1]),
    'tools/dist_test.sh': ('tools/test.py', [2]),
    'tools/slurm_train.sh': ('tools/train.py', [0, 1]),
}


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    return [body for language, body in BLOCK.findall(path.read_text()) if language in languages]


COMMANDS = [
    pytest.param(words, id=f'{name_of(path)}-{number}')
    for path in GUIDES
    for number, words in enumerate(itertools.chain(*map(commands_in, blocks(path, '', 'bash', 'sh'))))
]


class Parsed(Exception):
    """Carries what a tool's parser made of its arguments."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function that starts a tool and stops it as soon as its own parser has accepted the arguments."""
    accept = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise Parsed(accept(parser, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)

    def start(tool, arguments):
        monkeypatch.setattr(sys, 'argv', [str(tool), *arguments])
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(tool), run_name='__main__')
        return parsed.value.args[0]

    return start


def check_tool(parse, tool, arguments):
    """The tool is there, takes these arguments, and its config and the overrides are such that it would start."""
    assert (ROOT / tool).is_file(), tool
    if tool in LAUNCHERS:
        started, own = LAUNCHERS[tool]
        check_tool(parse, started, [word for number, word in enumerate(arguments) if number not in own])
        return
    args = parse(ROOT / tool, arguments)
    for word in arguments:
        if word.startswith('configs/'):
            assert (ROOT / word).is_file(), word
    config = getattr(args, 'config', None)
    if config and not PLACEHOLDER.fullmatch(config):
        config = WRITTEN.get(config, config)
        cfg = read(find_config(config) if is_name(config) else str(ROOT / config))
        check_overrides(cfg, getattr(args, 'cfg_options', None))
        cfg.merge_from_dict(getattr(args, 'cfg_options', None) or {})


@cache
def _parsed(config):
    return load_config(config)


def read(config):
    """Return a copy of a config as the tools read it."""
    return Config(ConfigDict(_parsed(config)._cfg_dict.to_dict()))


@pytest.mark.parametrize('words', COMMANDS)
def test_command_is_one(words, parse, monkeypatch):
    """Every command of the documents names a tool or target that is there, with arguments that it takes."""
    monkeypatch.chdir(ROOT)
    first, rest = words[0], words[1:]
    if first in PYTHON:
        if rest[0] == '-c':
            ast.parse(rest[1])
        elif rest[0] == '-m':
            assert importlib.util.find_spec(rest[1]), rest[1]
        else:
            check_tool(parse, rest[0], rest[1:])
    elif first == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert [word for word in rest if '=' not in word][0] in targets
    elif first.startswith('tools/'):
        check_tool(parse, first, rest)
    elif first.startswith('benchmarks/'):
        assert (ROOT / first).is_file()
    else:
        assert first in SYSTEM, f'{first} is not a command that this test knows'


@pytest.mark.parametrize('path', GUIDES, ids=name_of)
def test_code_is_code(path):
    """Python blocks compile and JSON blocks parse."""
    for block in blocks(path, 'python'):
        ast.parse(block)
    for block in blocks(path, 'json'):
        json.loads(block)


def anchors(path):
    """Return the anchors of a Markdown file's headings, as GitHub and the site make them."""
    text = BLOCK.sub('', path.read_text())
    headings = [re.sub(r'[`*]|\[([^\]]*)\]\([^)]*\)', r'\1', line) for line in re.findall(r'^#+ (.+)$', text, re.M)]
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('path', DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    """Relative links end at files of the repository, and what follows # is a heading there."""
    for target, anchor in LINK.findall(BLOCK.sub('', path.read_text())):
        file = (path.parent / target).resolve() if target else path
        assert file.is_file() and ROOT in file.parents, f'{target} is not a file of the repository'
        assert not anchor or anchor in anchors(file), f'{target}#{anchor}: its headings are {sorted(anchors(file))}'


def spans(path):
    """Return the text in backticks outside blocks."""
    return re.findall(r'`([^`\n]+)`', BLOCK.sub('', path.read_text()))


@pytest.mark.parametrize('path', GUIDES, ids=name_of)
def test_named_files_exist(path):
    """Every path of the repository in backticks exists, from the root or from the document's folder."""
    for span in spans(path):
        match = IN_REPOSITORY.match(span)
        if match and not re.search(r'[A-Z]{4,}', match[0].replace('README', '').replace('NAME', 'NAMES')):
            assert any(list(base.glob(match[0])) for base in (ROOT, path.parent, ROOT / 'mmconvnextv2')), span


@pytest.fixture(scope='module')
def recipes():
    """One recipe of each kind."""
    return [
        read(str(ROOT / 'configs' / name))
        for name in (
            'fcmae/fcmae_convnextv2-a_1xb64-800e_folder.py',
            'fcmae/fcmae_convnextv2-h_fsdp_64xb64-800e_in1k.py',
            'fcmae/fcmae_convnextv2-a_mp-mae_64xb64-200e_mmearth.py',
            'mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py',
            'upernet/upernet_convnextv2-a_160k_ade20k-512x512.py',
            'classification/convnextv2-a_fcmae-ft_in1k-224.py',
        )
    ]


def has_home(cfg, key):
    """Whether all of a dotted key but its last name is in a config, or is an argument of the backbone."""
    node = cfg._cfg_dict
    if key.startswith('model.backbone.'):
        return key.split('.')[2] in inspect.signature(ConvNeXtV2).parameters
    for name in key.split('.')[:-1]:
        try:
            node = node[int(name)] if isinstance(node, (list, tuple)) else node[name]
        except (KeyError, IndexError, ValueError):
            return False
    return isinstance(node, (dict, list))


@pytest.mark.parametrize('path', GUIDES, ids=name_of)
def test_overrides_have_a_home(path, recipes):
    """Every override in backticks, ``model.backbone.with_cp=True``, sets a key inside something that a recipe has."""
    for span in spans(path):
        for option in (word for word in span.split() if OPTION.fullmatch(word)):
            for one in expand(option):
                assert any(has_home(cfg, one.split('=')[0]) for cfg in recipes), option


def public_names():
    """Return the names of the page on public names by module, as its table lists them."""
    rows = re.findall(r'^\| `(mmconvnextv2[\w.]*)` \| (.+) \|$', (ROOT / 'docs' / 'api.md').read_text(), re.MULTILINE)
    return {module: re.findall(r'`(\w+)`', names) for module, names in rows}


def test_public_names_import_and_are_described():
    """Public names import, the reference describes each, and whatever a module exports in ``__all__`` is among them."""
    pages = ''.join(path.read_text() for path in (ROOT / 'docs' / 'reference').glob('*.md'))
    described = {line.rsplit('.', 1)[-1] for line in re.findall(r'^::: ([\w.]+)$', pages, re.MULTILINE)}
    listed = public_names()
    assert len(listed) > 8
    for module, names in listed.items():
        module = importlib.import_module(module)
        assert [name for name in names if not hasattr(module, name)] == []
        assert [name for name in names if name not in described] == []
    for module in ('mmconvnextv2', 'mmconvnextv2.models.execution', 'mmconvnextv2.checkpoint', 'mmconvnextv2.pretrain'):
        exported = set(importlib.import_module(module).__all__) - {'__version__', 'LICENCE'}
        assert exported - set(itertools.chain(*listed.values())) == set()


def test_reference_describes_what_is_there():
    """Every name that the reference asks the docstrings of exists and has a docstring, or is a table or number."""
    for path in (ROOT / 'docs' / 'reference').glob('*.md'):
        for name in re.findall(r'^::: ([\w.]+)$', path.read_text(), re.MULTILINE):
            module, _, attribute = name.rpartition('.')
            thing = getattr(importlib.import_module(module), attribute)
            assert thing.__doc__, name


# ---- commands that use what the quickstart leaves, run on a small copy of it

SMALLER = ['train_dataloader.batch_size=8', 'train_dataloader.num_workers=1', 'val_dataloader.num_workers=1']


def save(config, path, **meta):
    """Write a checkpoint of a quickstart config's model, newly initialised."""
    cfg = read(str(ROOT / 'configs' / 'quickstart' / f'{config}.py'))
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return model


@pytest.fixture(scope='module')
def left_by_quickstart(tmp_path_factory):
    """A folder with what ``make quickstart`` leaves: little data, and models that have learnt nothing."""
    home = tmp_path_factory.mktemp('home')
    for folder in ('configs', 'tools'):
        (home / folder).symlink_to(ROOT / folder)
    root = home / 'work_dirs' / 'quickstart'
    make_embedded(str(root / 'data'), EmbeddedSpec(unlabelled=4, train=8, val=8, size=64))  # all classes in both
    backbone = save('fcmae', root / 'fcmae' / 'epoch_12.pth').backbone
    torch.save(dict(state_dict=backbone.state_dict()), root / 'backbone.pth')
    for task, name, classes in (('mask-rcnn', 'epoch_6', 6), ('upernet', 'iter_400', 10)):
        save(
            task,
            root / f'{task}_pretrained' / f'{name}.pth',
            dataset_meta=dict(classes=[f'class {number}' for number in range(classes)], palette=[[0, 0, 0]] * classes),
        )
    return home


def follow(path, monkeypatch, capfd):
    """Do what a page says, from the top: run its code, its commands on the quickstart's data, and compare prints."""
    printed, done = '', 0
    for language, block in BLOCK.findall(path.read_text()):
        if language == 'python' and 'sys.argv' not in block:  # else that of a file
            exec(compile(block, str(path), 'exec'), dict(__name__='__main__'))
        elif language == '' and 'work_dirs/quickstart' in block:
            for words in commands_in(block):
                if words[0] in PYTHON and words[1].startswith('tools/'):
                    capfd.readouterr()
                    smaller = [*SMALLER, f'visualizer.name={path.stem}'] if words[1] == 'tools/train.py' else []
                    monkeypatch.setattr(sys, 'argv', [*words[1:], *smaller])
                    runpy.run_path(words[1], run_name='__main__')
                    printed, done = capfd.readouterr(), done + 1
        elif language == 'text' and printed:
            assert not_printed(block, ''.join(printed)) == []
            printed = ''
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    'page, num_commands',
    [('index', 2), ('pretrain', 1), ('detect', 1), ('segment', 1), ('classify', 2), ('weights', 1), ('export', 1)],
)
def test_page_does_what_it_says(page, num_commands, left_by_quickstart, monkeypatch, capfd):
    """On a small copy of what the quickstart leaves, a page's code and commands run, and print what the page shows."""
    monkeypatch.chdir(left_by_quickstart)
    assert follow(ROOT / 'docs' / f'{page}.md', monkeypatch, capfd) == num_commands
