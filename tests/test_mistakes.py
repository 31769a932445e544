"""``tools/test.py --show-dir`` ranks images by what a person would call wrong, and the report shows the worst first."""

import json

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from PIL import Image

from mmconvnextv2.commands.report import worst_first
from mmconvnextv2.engine.hooks.mistakes import mistakes_of

CLASSES = ['cat', 'dog', 'bird']


def detected(boxes, labels, scores, true_boxes, true_labels, crowds=()):
    sample = DetDataSample()
    shape = (-1, 4)
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).view(shape), labels=torch.tensor(labels).long(), scores=torch.tensor(scores)
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(true_boxes).view(shape), labels=torch.tensor(true_labels).long()
    )
    if crowds:
        sample.ignored_instances = InstanceData(bboxes=torch.tensor(crowds), labels=torch.zeros(len(crowds)).long())
    return mistakes_of(sample, CLASSES, 0.3)


CAT, DOG = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]


@pytest.mark.parametrize(
    'found, error, text',
    [
        (([CAT, DOG], [0, 1], [0.9, 0.8]), 0.0, 'all found'),
        (([CAT], [0], [0.9]), 1 / 2, 'missed: 1 dog'),
        (([CAT, DOG], [0, 2], [0.9, 0.8]), 2 / 3, 'missed: 1 dog; wrong: 1 bird'),
        (([CAT, CAT, DOG], [0, 0, 1], [0.9, 0.8, 0.7]), 1 / 3, 'wrong: 1 cat'),  # found twice
        (([CAT, DOG], [0, 1], [0.9, 0.2]), 1 / 2, 'missed: 1 dog'),  # below the threshold
        (([[0.0, 0.0, 10.0, 4.0], DOG], [0, 1], [0.9, 0.8]), 2 / 3, 'missed: 1 cat; wrong: 1 cat'),  # IoU 0.4
        (([], [], []), 1.0, 'missed: 1 cat, 1 dog'),
    ],
)
def test_detection_counts_what_has_no_counterpart(found, error, text):
    """An object is right if it overlaps one true object of its class, which none of a higher score has taken."""
    mistakes = detected(*found, [CAT, DOG], [0, 1])
    assert mistakes.error == pytest.approx(error) and mistakes.text == text


def test_the_better_score_takes_the_object():
    """Of two overlapping objects the one of the higher score is right, whichever comes first."""
    near = [0.0, 0.0, 10.0, 8.0]
    boxes = [near, CAT, DOG]
    assert detected(boxes, [0, 0, 1], [0.5, 0.9, 0.9], [CAT, DOG], [0, 1]).text == 'wrong: 1 cat'
    assert detected([], [], [], [], []).error == 0.0


def test_crowds_count_neither_way():
    """A cat found in a crowd of cats is not wrong, and the crowd is not missed; elsewhere it is wrong."""
    crowd = [[50.0, 50.0, 90.0, 90.0]]
    assert detected([CAT, crowd[0]], [0, 0], [0.9, 0.8], [CAT], [0], crowd) == (0.0, 'all found')
    assert detected([CAT], [0], [0.9], [CAT], [0], crowd) == (0.0, 'all found')
    assert detected([CAT, crowd[0]], [0, 0], [0.9, 0.8], [CAT], [0]).text == 'wrong: 1 cat'


def test_segmentation_is_mean_iou_and_names_confusions():
    """The error is one minus the mean IoU of the classes that occur; ignored pixels count nowhere."""
    true = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 255]])
    labels = torch.tensor([[0, 0, 0, 2], [1, 2, 2, 0]])
    sample = SegDataSample(gt_sem_seg=PixelData(data=true[None]), pred_sem_seg=PixelData(data=labels[None]))
    mistakes = mistakes_of(sample, CLASSES, 0.3)
    assert mistakes.error == pytest.approx(1 - (3 / 4 + 1 / 3) / 2)
    assert mistakes.text == 'dog as bird 28.6 %, cat as bird 14.3 %'
    sample = SegDataSample(gt_sem_seg=PixelData(data=true[None]), pred_sem_seg=PixelData(data=true.clamp(max=1)[None]))
    assert mistakes_of(sample, CLASSES, 0.3) == (0.0, 'all right')


def test_classification_is_the_score_of_the_true_class():
    """The error is one minus the score of the true class."""
    sample = DataSample().set_gt_label(1).set_pred_score(torch.tensor([0.7, 0.2, 0.1]))
    mistakes = mistakes_of(sample, CLASSES, 0.3)
    assert mistakes.error == pytest.approx(0.8) and mistakes.text == 'dog as cat, score 0.70'
    assert mistakes_of(DataSample().set_pred_score(torch.tensor([1.0])), CLASSES, 0.3) is None


def test_report_shows_the_worst_first(tmp_path):
    """Drawn images are sorted by error over all folders, under the names that each library gives them; images of the
    same name in two folders keep their own mistakes, and images without mistakes come last."""
    for folder, ranked in (('one', dict(b=0.9, a=0.5)), ('two', dict(a=0.7))):
        (tmp_path / folder).mkdir()
        content = [dict(file=f'data/{name}.jpg', error=error, text=folder) for name, error in ranked.items()]
        (tmp_path / folder / 'mistakes.json').write_text(json.dumps(content))
    for name in ('one/test_a.jpg_0.png', 'one/b.jpg', 'one/other.png', 'two/a.jpg'):
        Image.new('RGB', (4, 4)).save(tmp_path / name)
    described = worst_first([str(tmp_path / 'one'), str(tmp_path / 'two')])
    assert [text for _, text in described] == [
        'b.jpg: one (error 0.90)',
        'a.jpg: two (error 0.70)',
        'test_a.jpg_0.png: one (error 0.50)',
        'other.png',
    ]
