"""The embedded data set is what its labels say, in every layout, and the same each time."""

import json
import math

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmseg.datasets import BaseSegDataset
from PIL import Image
from pycocotools.coco import COCO

from mmconvnextv2.datasets import GROUNDS, OBJECTS, EmbeddedSpec, make_embedded, render_scene
from mmconvnextv2.datasets.synthetic import writer as embedded
from mmconvnextv2.datasets.synthetic.scenes import object_mask

SPEC = EmbeddedSpec(unlabelled=2, train=6, val=3, size=64)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'embedded'
    assert make_embedded(str(path), SPEC)
    return path


def test_same_images_each_time(root, tmp_path):
    """Drawing again gives the same bytes, and other seeds and splits give other images."""
    make_embedded(str(tmp_path / 'new' / 'again'), SPEC)
    files = [path.relative_to(root) for path in root.rglob('*') if path.is_file()]
    assert len(files) == 2 + 3 * (6 + 3) + 2 + 1
    assert all((root / name).read_bytes() == (tmp_path / 'new' / 'again' / name).read_bytes() for name in files)
    assert not np.array_equal(render_scene(0, 1, 0, 64).image, render_scene(1, 1, 0, 64).image)
    assert not np.array_equal(render_scene(0, 1, 0, 64).image, render_scene(0, 2, 0, 64).image)


def test_image_does_not_depend_on_the_others(root):
    """The last training image on disk is the same when those before it are not rendered."""
    assert np.array_equal(np.asarray(Image.open(root / 'coco/train2017/000005.png')), render_scene(0, 1, 5, 64).image)
    assert np.array_equal(np.asarray(Image.open(root / 'unlabelled/000001.png')), render_scene(0, 0, 1, 64).image)


def test_layouts_agree(root):
    """mmdet's masks, painted over the ground that mmseg gives, are exactly mmseg's labels; boxes are tight."""
    coco = CocoDataset(
        ann_file='annotations/instances_train2017.json',
        data_root=str(root / 'coco'),
        metainfo=dict(classes=OBJECTS),
        data_prefix=dict(img='train2017/'),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    segmentation = BaseSegDataset(
        data_root=str(root / 'ade'),
        reduce_zero_label=True,
        seg_map_suffix='.png',
        img_suffix='.png',
        metainfo=dict(classes=GROUNDS + OBJECTS),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
    )
    assert len(coco) == len(segmentation) == 6
    for index in range(6):
        detected, labelled = coco[index], segmentation[index]
        assert np.array_equal(detected['img'], labelled['img'])
        labels, masks = labelled['gt_seg_map'], detected['gt_masks'].masks
        painted = np.full_like(labels, np.unique(labels)[0])
        for mask, category, box in zip(masks, detected['gt_bboxes_labels'], detected['gt_bboxes'].tensor.numpy()):
            assert (painted[mask.astype(bool)] < len(GROUNDS)).all()  # masks do not overlap
            painted[mask.astype(bool)] = len(GROUNDS) + category
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.array_equal(painted, labels)


def test_areas_and_classes_of_the_annotation_file(root):
    """pycocotools decodes masks whose pixels are the area given, every class is named, and ids are unique."""
    coco = COCO(str(root / 'coco' / 'annotations' / 'instances_val2017.json'))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len({item['id'] for item in annotations}) == len(annotations) >= 3
    assert all(coco.annToMask(item).sum() == item['area'] for item in annotations)
    assert {item['id']: item['name'] for item in coco.cats.values()} == dict(enumerate(OBJECTS, 1))


@pytest.mark.parametrize(
    'name, area',
    [
        ('disc', math.pi * 0.9**2),
        ('square', 1.5**2),
        ('triangle', 1.5 * 1.5 / 1.9),
        ('star', math.pi * (0.6**2 + 0.35**2 / 2)),
        ('ring', math.pi * (0.95**2 - 0.5**2)),
        ('cross', 2 * 0.6 * 1.9 - 0.6**2),
    ],
)
def test_shapes_have_their_geometric_area(name, area):
    """The mask of each shape covers the area that geometry gives for it."""
    v, u = np.mgrid[-1:1:1001j, -1:1:1001j]
    assert 4 * object_mask(OBJECTS.index(name), u, v).mean() == pytest.approx(area, rel=0.01)


def test_occlusion_and_scale_vary():
    """Among forty scenes some objects are partly covered, sizes differ fourfold, and every class and ground occurs."""
    scenes = [render_scene(0, 1, index, 128) for index in range(40)]
    areas = {
        kind: [mask.sum() for scene in scenes for category, mask in scene.instances if category == kind]
        for kind in range(len(OBJECTS))
    }
    assert all(max(sizes) > 4 * min(sizes) for sizes in areas.values())
    assert {label for scene in scenes for label in np.unique(scene.labels)} == set(range(1, 11))
    touching = [
        scene
        for scene in scenes
        for _, one in scene.instances
        for _, other in scene.instances
        if one is not other and (one[:, 1:] & other[:, :-1]).any()
    ]
    assert len(touching) > 5


def test_complete_folder_is_reused_and_others_are_left_alone(root, tmp_path):
    """A complete folder is not rendered again; one with other images, or foreign files, is refused untouched."""
    before = (root / 'spec.json').stat().st_mtime_ns
    assert not make_embedded(str(root), SPEC)
    assert (root / 'spec.json').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match='choose another folder'):
        make_embedded(str(root), EmbeddedSpec(size=32))
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='choose another folder'):
        make_embedded(str(tmp_path), SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_nothing_is_left_when_drawing_fails(tmp_path, monkeypatch):
    """A full disk in the middle leaves neither the folder nor a partial one, and the next call draws it all."""
    real_annotation, calls = embedded._annotation, []

    def full_disk(*args):
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, 'No space left on device')
        return real_annotation(*args)

    monkeypatch.setattr(embedded, '_annotation', full_disk)
    with pytest.raises(OSError, match='No space'):
        make_embedded(str(tmp_path / 'data'), SPEC)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    assert make_embedded(str(tmp_path / 'data'), SPEC)
    assert json.loads((tmp_path / 'data' / 'spec.json').read_text())['train'] == 6


@pytest.mark.parametrize(
    'values, words',
    [
        (dict(size=8), 'size=8.*32'),
        (dict(train=0), 'train=0.*1'),
        (dict(seed=-1), 'seed=-1'),
        (dict(val=2.5), 'val=2.5'),
    ],
)
def test_refuses_a_bad_spec(values, words):
    """A setting that cannot be rendered is named with its value and the least allowed one."""
    with pytest.raises(ValueError, match=words):
        EmbeddedSpec(**values)
