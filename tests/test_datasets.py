"""The embedded data set is what its labels say, in every layout, and the same each time."""
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmconvnextv2.datasets import GROUNDS, OBJECTS, EmbeddedSpec, draw_scene, make_embedded

SPEC = EmbeddedSpec(unlabelled=2, train=6, val=3, size=64)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'embedded'
    assert make_embedded(str(path), SPEC)
    return path


def test_same_pictures_each_time(root, tmp_path):
    """Drawing again gives the same bytes, another seed other pictures, and a complete folder is left alone."""
    make_embedded(str(tmp_path / 'again'), SPEC)
    files = [path.relative_to(root) for path in root.rglob('*') if path.is_file()]
    assert len(files) == 2 + 3 * (6 + 3) + 2 + 1
    assert all((root / name).read_bytes() == (tmp_path / 'again' / name).read_bytes() for name in files)
    assert not make_embedded(str(root), SPEC)
    assert not np.array_equal(draw_scene(0, 1, 0, 64).image, draw_scene(1, 1, 0, 64).image)
    assert not np.array_equal(draw_scene(0, 1, 0, 64).image, draw_scene(0, 2, 0, 64).image)
    with pytest.raises(ValueError, match='another folder'):
        make_embedded(str(root), EmbeddedSpec(size=32))


def test_both_layouts_agree(root):
    """mmdet's masks, painted over mmseg's grounds, are mmseg's labels where objects are large enough to be listed."""
    coco = CocoDataset(
        ann_file='annotations/instances_train2017.json', data_root=str(root / 'coco'), metainfo=dict(classes=OBJECTS),
        data_prefix=dict(img='train2017/'), pipeline=[
            dict(type='mmdet.LoadImageFromFile'), dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True)])
    segmentation = BaseSegDataset(
        data_root=str(root / 'ade'), reduce_zero_label=True, seg_map_suffix='.png', img_suffix='.png',
        metainfo=dict(classes=GROUNDS + OBJECTS),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')])
    assert len(coco) == len(segmentation) == 6
    for index in range(6):
        detected, labelled = coco[index], segmentation[index]
        assert np.array_equal(detected['img'], labelled['img'])
        labels = labelled['gt_seg_map']
        assert set(np.unique(labels)) <= set(range(len(GROUNDS + OBJECTS)))
        masks = detected['gt_masks'].masks
        assert len(masks) and masks.sum(0).max() == 1
        for mask, category, box in zip(masks, detected['gt_bboxes_labels'], detected['gt_bboxes'].tensor.numpy()):
            assert (labels[mask.astype(bool)] == len(GROUNDS) + category).all()
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert ((labels >= len(GROUNDS)) & (masks.sum(0) == 0)).sum() < 20 * 5


def test_labels_are_never_zero(root):
    """Every pixel of a label picture has a class: zero would mean unlabelled."""
    labels = [np.asarray(Image.open(path)) for path in (root / 'ade' / 'annotations').rglob('*.png')]
    assert len(labels) == 9 and min(label.min() for label in labels) == 1


def test_refuses_a_bad_spec():
    """A size too small to draw on is named."""
    with pytest.raises(ValueError, match='size=8'):
        EmbeddedSpec(size=8)
