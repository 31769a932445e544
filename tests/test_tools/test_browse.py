"""``tools/browse.py`` draws samples as the pipeline makes them, in their own colours, with what belongs to them."""

import numpy as np
import pytest
from PIL import Image

from mmconvnextv2.commands.browse import browse, parse_args, to_displayable
from mmconvnextv2.commands.run_tool import run_tool

HIDDEN = (114, 114, 114)


def draw(config, out, *options, num=2):
    overrides = ['--cfg-options', *options] if options else []
    run_tool(browse, parse_args([str(config), '--out', str(out), '--num', str(num), *overrides]))
    return [np.asarray(Image.open(path)) for path in sorted(out.glob('*.png'))]


def source(folder, number=0):
    return np.asarray(Image.open(sorted(folder.glob('*.png'))[number]).convert('RGB'))


def test_masked_sample(tools, tmp_path):
    """An FCMAE sample is shown next to its masked copy: six cells of ten in grey, the others unchanged."""
    for image in draw(
        tools.configs['fcmae'], tmp_path, *tools.options('fcmae'), 'train_dataloader.dataset.pipeline.1.scale=160'
    ):
        plain, masked = image[:, :160], image[:, 160:]
        cells = [
            (plain[y : y + 32, x : x + 32], masked[y : y + 32, x : x + 32])
            for y in range(0, 160, 32)
            for x in range(0, 160, 32)
        ]
        hidden = [(cell == HIDDEN).all() for _, cell in cells]
        assert sum(hidden) == 15
        assert all((one == other).all() for (one, other), is_hidden in zip(cells, hidden) if not is_hidden)


def test_detection_sample_keeps_the_colours(tools, tmp_path):
    """Without augmentation, a detection sample is its file, red first, except for the drawn objects."""
    drawn = draw(
        tools.configs['mask-rcnn'],
        tmp_path,
        *tools.options('mask-rcnn'),
        'train_dataloader.dataset.pipeline.2.prob=0.0',
        num=1,
    )[0]
    file = source(tools.data / 'coco' / 'train2017')
    same = (np.abs(drawn.astype(int) - file).max(-1) <= 2).mean()
    swapped = (np.abs(drawn[..., ::-1].astype(int) - file).max(-1) <= 2).mean()
    assert drawn.shape == file.shape and 0.2 < same < 1 and swapped < same / 4


def test_segmentation_sample_is_tinted_by_class(tools, tmp_path):
    """Every pixel of a segmentation sample is tinted, equal classes alike: the tint is a function of the label."""
    drawn = draw(
        tools.configs['upernet'],
        tmp_path,
        *tools.options('upernet'),
        'train_dataloader.dataset.pipeline.2.prob=0.0',
        num=1,
    )[0].astype(float)
    file = source(tools.data / 'ade' / 'images' / 'training').astype(float)
    labels = np.asarray(Image.open(sorted((tools.data / 'ade' / 'annotations' / 'training').glob('*.png'))[0]))
    for label in np.unique(labels):
        of_class = (drawn - 0.2 * file)[labels == label]  # mmseg draws the palette at an opacity of 0.8
        tint = np.median(of_class, axis=0)
        assert (np.abs(of_class - tint).max(1) <= 2).mean() > 0.5, label  # the rest is the written name


def test_classified_sample_names_its_class(tmp_path):
    """A classification sample is the cropped image with its label written into it."""
    for name in ('cat', 'dog'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        Image.new('RGB', (64, 64), (200, 40, 10)).save(tmp_path / 'data' / name / 'a.png')
    (tmp_path / 'config.py').write_text(
        "default_scope = 'mmpretrain'\nmodel = dict()\ndata_preprocessor = dict(to_rgb=True)\n"
        "visualizer = dict(type='UniversalVisualizer')\n"
        "train_dataloader = dict(dataset=dict(type='CustomDataset', data_root='" + str(tmp_path / 'data') + "', "
        "pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))\n"
    )
    first, second = draw(tmp_path / 'config.py', tmp_path / 'out')
    assert (first[-50:] == (200, 40, 10)).all() and not (first[:50] == (200, 40, 10)).all()
    assert (first != second).any()


@pytest.mark.parametrize('channels, dtype', [(1, np.uint8), (5, np.float32)])
def test_other_channels_show_the_first(channels, dtype):
    """A sample of other than three channels is shown as its first one, values above 255 brought into range."""
    inputs = np.random.default_rng(0).integers(0, 200, (channels, 4, 6)).astype(dtype)
    if dtype == np.float32:
        inputs[0, 0, 0] = 1020.0
    image = to_displayable(inputs, is_bgr=True)
    wanted = inputs[0] if dtype == np.uint8 else inputs[0] / 4
    assert (image == wanted.astype(np.uint8)[..., None]).all()


def test_mistakes_end_in_one_line(tools, tmp_path):
    """A missing folder, and a split that the config lacks, end as one line."""
    with pytest.raises(SystemExit, match='error: train_dataloader.dataset.*does not exist'):
        draw(tools.configs['upernet'], tmp_path, 'train_dataloader.dataset.data_root=/nowhere')
    with pytest.raises(SystemExit, match='error: --split=val'):
        run_tool(browse, parse_args([tools.configs['fcmae'], '--split', 'val']))
