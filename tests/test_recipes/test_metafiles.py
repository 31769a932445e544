"""``model-index.yml`` and the metafiles are true of every recipe."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_every_leaf import TASKS  # whose recipes are compared there

from mmconvnextv2.commands.flops import build_on_meta, count_parameters
from mmconvnextv2.utils.config import load_config

ROOT = Path(__file__).parents[2]
NO_RECIPES = {'_base_', 'custom', 'quickstart', 'small', 'swaps'}  # parts, examples, the demonstration, own data, 0.1
FOLDERS = sorted({path.parent.name for path in (ROOT / 'configs').glob('*/*.py')} - NO_RECIPES)
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in (ROOT / 'configs' / folder).glob('*.py')
    if not path.read_text().startswith('# The name of 0.1')
)
SOURCE = re.compile(
    r'(arXiv 2301\.00808|README of facebookresearch/ConvNeXt(-V2)?)(, (table|section) [\d.]+[a-f]?)?'
    r'(, after fine-tuning)?'
)
METRICS = {name: name for name in ('box AP', 'mask AP', 'mIoU')}
METRICS |= {'Top 1 Accuracy': 'top-1', 'mIoU (multi-scale)': 'mIoU'}


def results(entry):
    return entry['Results'] or []


def test_every_recipe_is_indexed_once(metafiles, indexed):
    """Recipes and entries are the same set; each is in its own folder's metafile, under its file's name."""
    assert sorted(metafiles) == [f'configs/{folder}/metafile.yml' for folder in FOLDERS]
    assert sorted(indexed) == RECIPES
    assert sum(len(content['Models']) for content in metafiles.values()) == len(RECIPES)
    for path, content in metafiles.items():
        (collection,) = content['Collections']
        assert (ROOT / collection['README']).is_file()
        for entry in content['Models']:
            assert Path(entry['Config']).parent == Path(path).parent and Path(entry['Config']).stem == entry['Name']
            assert entry['In Collection'] == collection['Name']


def test_results_are_published_ones(indexed):
    """No number is ours: each names its source and is in the leaf or the table of recipes; weights name an author."""
    table = (ROOT / 'configs' / 'README.md').read_text().splitlines()
    listed = 0
    for path, entry in indexed.items():
        if 'Weights' in entry:
            assert entry['Metadata']['Weights By'].startswith(('Meta AI', 'MMDetection', 'MMSegmentation'))
        row = next((line for line in table if f'({path[len("configs/") :]})' in line and line.count('|') > 4), '')
        for result in results(entry):
            ((metric, value),) = result['Metrics'].items()
            assert metric in METRICS and SOURCE.fullmatch(result['Source']), path
            assert f'| {value}' in row or f' {value} {METRICS[metric]}' in row, (path, row)
            assert result['Source'].split(', ')[1] in row if ', table' in result['Source'] else row, path
            assert str(value) in (ROOT / path).read_text() or 'after fine-tuning' in result['Source'], path
            listed += 1
    assert listed > 50


@pytest.mark.parametrize('path', [path for path in RECIPES if path.split('/')[1] not in TASKS])
def test_metadata_is_the_model_s(indexed, path):
    """Parameters, epochs and batch of an entry are those of the model and the schedule that its config builds."""
    cfg, metadata = load_config(str(ROOT / path)), indexed[path]['Metadata']
    assert metadata['Parameters'] == count_parameters(build_on_meta(cfg))
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert metadata.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert metadata.get('Iterations') == cfg.train_cfg.get('max_iters')


def test_recipe_by_name(tmp_path):
    """Where the package is installed, the tools take a config that starts from a recipe by the package's name."""
    info = tmp_path / 'mmconvnextv2-0.1.0.dist-info'  # as a wheel lies; mmengine does not find editable installs
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmconvnextv2\nVersion: 0.1.0\n')
    (tmp_path / 'mmconvnextv2').symlink_to(ROOT / 'mmconvnextv2')
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmconvnextv2::classification/convnextv2-h_in22k-ft_in1k-512.py'\ntrain_cfg = dict(max_epochs=3)\n"
    )
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        'from mmconvnextv2.commands.arguments import load_config\n'
        f'cfg = load_config({str(tmp_path / "mine.py")!r})\n'
        'print(cfg.model.backbone.arch, cfg.train_pipeline[1].scale, cfg.train_cfg.max_epochs)'
    )
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout == 'huge 512 3\n', run.stderr
