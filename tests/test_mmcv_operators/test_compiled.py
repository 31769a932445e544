"""mmcv's operators by torchvision against compiled ones: the same numbers, from single calls to a whole Mask R-CNN."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

mmcv = pytest.importorskip('mmcv', reason='needs mmcv: make env')
pytestmark = pytest.mark.skipif(
    PathFinder.find_spec('mmcv._ext', mmcv.__path__) is None,
    reason='needs compiled mmcv: OPS=compiled make env VENV=.venv-compiled, then that Python',
)


@pytest.fixture(scope='module')
def operators():
    sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
    import operators

    yield operators
    sys.path.pop(0)
    sys.modules.pop('operators')


def test_cases_of_the_table(operators):
    """NMS, matching, Soft-NMS except for the Gaussian one, and RoIAlign are equal bit for bit, gradients too; Gaussian
    Soft-NMS to the last bit of exp, deformable convolution to 1e-6 of the largest value."""
    extensions = operators.load()
    for name, case in operators.cases().items():
        row = operators.compare(case, extensions, rounds=0)
        loose = 'gaussian' in name or 'deformable' in name
        bound = 1e-6 * max(row['largest'], 1) if loose else 0
        assert row['values'] <= bound and row['gradients'] <= bound, (name, row)


def test_calls_with_ties(operators):
    """NMS, matching and Soft-NMS agree on tied scores, on overlaps equal to the threshold and on boxes without area."""
    extensions = operators.load()
    generator = torch.Generator().manual_seed(0)
    for trial in range(200):
        count = int(torch.randint(1, 90, (1,), generator=generator))
        boxes, scores = operators.random_boxes(count, trial), torch.rand(count, generator=generator)
        if trial % 2:
            boxes, scores = (boxes / 50).round() * 50, (scores * 8).round() / 8
        how = dict(iou_threshold=(0.5, 0.25, 0.0, 1.0)[trial % 4], offset=trial // 2 % 2)
        soft = dict(how, sigma=0.5, min_score=(0.05, 0.0, 0.3)[trial % 3], method=trial // 3 % 2)
        found = []
        for extension in extensions.values():
            dets = torch.zeros(count, 5)
            kept = extension.softnms(boxes.clone(), scores.clone(), dets, **soft)
            matched = extension.nms_match(
                torch.cat([boxes, scores[:, None]], dim=1), iou_threshold=how['iou_threshold']
            )
            found.append(
                (kept.tolist(), dets[: len(kept)].tolist(), extension.nms(boxes, scores, **how).tolist(), matched)
            )
        assert found[0] == found[1], (trial, how, soft)


def test_mask_rcnn(operators):
    """A training step of Mask R-CNN has the same losses and gradients, and its detections are the same, bit for bit."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    from mmconvnextv2.utils.config import import_scope

    root = Path(__file__).parents[2]
    cfg = Config.fromfile(str(root / 'configs/mask_rcnn/mask-rcnn_convnextv2-a_fpn_lsj-3x_coco.py'))
    import_scope(cfg)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    results = []
    for extension in operators.load().values():
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdet'), operators.served_by(extension):
            model = MODELS.build(cfg.model)
            model.init_weights()
            batch = demo_mm_inputs(
                batch_size=1, image_shapes=[(3, 160, 160)], num_items=[4], num_classes=80, with_mask=True
            )
            loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, training=True), mode='loss'))
            loss.backward()
            with torch.no_grad():
                (one,) = model.eval()(**model.data_preprocessor(batch), mode='predict')
        results.append(
            [
                loss.detach(),
                *(weight.grad for weight in model.parameters() if weight.grad is not None),
                one.pred_instances.bboxes,
                one.pred_instances.scores,
                one.pred_instances.masks,
            ]
        )
    assert len(results[0][-1]) > 10 and len(results[0]) == len(results[1])
    assert all(torch.equal(own, other) for own, other in zip(*results))
