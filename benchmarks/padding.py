"""How much padding changes what a model computes: an image alone against the same image in a padded batch.

    python benchmarks/padding.py [--images FOLDER] [--out TABLE.md]

Each image is scaled to at most ``SIDE`` pixels, and run alone (padded to a multiple of 32) and in a batch (padded to
``SIDE`` x ``SIDE``). The numbers are |batch - alone| / |alone| over the sites of the image, in float64, of narrow
models with random weights, the mean over the images. The last table is the CPU time of a training step.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import mmcv
import torch
from mmengine.registry import DefaultScope
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from mmconvnextv2 import ConvNeXtV2
from mmconvnextv2.datasets.image_files import list_images, read_rgb
from mmconvnextv2.datasets.synthetic.scenes import render_scene
from mmconvnextv2.ops.valid_sites import valid_sites
from mmconvnextv2.utils.config import load_config

SIDE, SHORT = 384, 256
ARCH = dict(depths=(2, 2, 4, 2), channels=(32, 64, 96, 128))
DETECTOR = 'configs/mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco.py'
SEGMENTOR = 'configs/upernet/upernet_convnextv2-t_160k_ade20k-512x512.py'
MASK2FORMER = 'configs/mask2former/mask2former_convnextv2-t_lsj-50e_coco.py'
ATSS = 'configs/atss/atss_convnextv2-t_fpn_1x_coco.py'
DINO = 'configs/dino/dino_convnextv2-t_4scale-12e_coco.py'


def build(path: str, scope: str, options: dict, valid: bool) -> nn.Module:
    """Build a recipe's model with a narrow backbone and random weights, in float64 and evaluation mode."""
    cfg = load_config(path, {**options, 'model.backbone.init_cfg': None, 'model.backbone.valid_sites': valid})
    cfg.model.backbone.arch = ARCH
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        if scope == 'mmdet':
            from mmdet.registry import MODELS
        else:
            from mmseg.registry import MODELS
        model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if 'grn' in name:  # starts as the identity
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith('bias'):  # start at 0, which hides what layers after the backbone make of padding
            nn.init.normal_(parameter, std=0.1)
    return model.double().eval()


def relative(alone: Tensor, batch: Tensor, valid: Tensor | None) -> float:
    """Return |batch - alone| / |alone|; of maps (1, C, h, w) over valid sites (H, W), h <= H."""
    if valid is None:
        return float((batch - alone).norm() / alone.norm())
    height, width = alone.shape[2:]
    inside = valid[:height, :width]
    difference = (batch[:, :, :height, :width] - alone)[:, :, inside]
    return float(difference.norm() / alone[:, :, inside].norm())


@torch.no_grad()
def measure(run, images: list[Tensor], value: float) -> dict[str, float]:
    """Compare each output that ``run`` names for images alone and padded with a value; the mean over images."""
    found: dict[str, list[float]] = {}
    for image in images:
        height, width = image.shape[1:]
        size = [-(-side // 32) * 32 for side in (height, width)]
        alone, batch = (
            nn.functional.pad(image, (0, columns - width, 0, rows - height), value=value)[None]
            for rows, columns in (size, (SIDE, SIDE))
        )
        mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        mask[:, :height, :width] = True
        outputs = [run(each, (height, width)) for each in (alone, batch)]
        for name, one in outputs[0].items():
            other, valid = outputs[1][name], None
            if other.ndim == 4:
                valid = valid_sites(mask, SIDE // other.shape[-1]).view(*other.shape[2:])
            found.setdefault(name, []).append(relative(one, other, valid))
    return {name: statistics.mean(values) for name, values in found.items()}


def grid_boxes(height: int, width: int, cells: int = 4) -> Tensor:
    """Return the cells of a grid over an image and the whole image, as RoIs (R, 5)."""
    x, y = (torch.linspace(0, side, cells + 1, dtype=torch.float64) for side in (width, height))
    boxes = [(0, x[j], y[i], x[j + 1], y[i + 1]) for i in range(cells) for j in range(cells)]
    return torch.tensor([*boxes, (0, 0, 0, width, height)], dtype=torch.float64)


def detector_run(model: nn.Module):
    model.roi_head.float()  # the recipes pool RoIs in float32

    def run(images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        maps = model.backbone(images)
        pyramid = model.neck(maps)
        scores, boxes = model.rpn_head(pyramid)
        rois, head = grid_boxes(*size), model.roi_head
        return {
            'backbone, stride 4': maps[0],
            'backbone, stride 32': maps[-1],
            'FPN, stride 4': pyramid[0],
            'FPN, stride 32': pyramid[3],
            'RPN scores, stride 4': scores[0],
            'RPN scores, stride 32': scores[3],
            'RoIAlign, boxes of 1/4 of a side': head.bbox_roi_extractor(pyramid[:4], rois)[:-1].flatten(),
            'box head, logits of these boxes': head._bbox_forward(pyramid, rois)['cls_score'][:-1],
            'box head, logits of the whole image': head._bbox_forward(pyramid, rois)['cls_score'][-1:],
            'mask head, logits of these boxes': head._mask_forward(pyramid, rois)['mask_preds'][:-1].flatten(),
        }

    return run


def atss_run(model: nn.Module):
    def run(images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        scores = model.bbox_head(model.neck(model.backbone(images)))[0]
        return {'scores, stride 8': scores[0], 'scores, stride 32': scores[2]}

    return run


def dino_run(model: nn.Module):
    model.neck.float(), model.encoder.float()
    nn.init.normal_(model.level_embed)  # uninitialised memory before init_weights

    def run(images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        from mmdet.structures import DetDataSample

        facts = dict(batch_input_shape=tuple(images.shape[2:]), img_shape=size)
        maps = model.neck(tuple(each.float() for each in model.backbone(images)))
        inputs, _ = model.pre_transformer(maps, [DetDataSample(metainfo=facts)])
        memory, found = model.forward_encoder(**inputs)['memory'][0], []
        for height, width in inputs['spatial_shapes'].tolist():
            found.append(memory[: height * width].T.reshape(1, -1, height, width))
            memory = memory[height * width :]
        return {'neck, stride 8': maps[0], 'encoder, stride 8': found[0], 'encoder, stride 32': found[2]}

    return run


def mask2former_run(model: nn.Module):
    model.panoptic_head.float()  # the recipes' pixel decoder is in float32

    def run(images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        from mmdet.structures import DetDataSample

        maps = tuple(each.float() for each in model.backbone(images))
        facts = dict(batch_input_shape=tuple(images.shape[2:]), img_shape=size)
        classes, masks = model.panoptic_head(maps, [DetDataSample(metainfo=facts)])
        return {'classes of the queries': classes[-1], 'masks of the queries': masks[-1]}

    return run


def segmentor_run(model: nn.Module):
    def run(images: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        maps = model.backbone(images)
        return {
            'pyramid pooling, global': model.decode_head.psp_modules(maps[-1])[0],
            'logits': model.decode_head(maps),
        }

    return run


def step_seconds(rounds: int = 9) -> dict[str, list[float]]:
    """Return CPU seconds of training steps of Atto on two 512-pixel images, one a quarter padded."""
    images = torch.randn(2, 3, 512, 512)
    images[1, :, :, 384:] = torch.nan
    steps, seconds = {}, {}
    for name, valid in (('padding counts', False), ('valid_sites=True', True)):
        torch.manual_seed(0)
        model = ConvNeXtV2('atto', valid_sites=valid).train()
        inputs = images if valid else images.nan_to_num()
        steps[name] = lambda model=model, inputs=inputs: sum(one.mean() for one in model(inputs)).backward()
        steps[name]()
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            seconds.setdefault(name, []).append(time.process_time() - started)
    return seconds


def read_images(folder: str | None, count: int) -> list[Tensor]:
    """Return normalised images (3, h, w), at most SIDE pixels long and SHORT high or wide."""
    if folder:
        arrays = [read_rgb(path) for path in list_images([folder])[:count]]
    else:
        arrays = [render_scene(0, 0, number, 448).image[: 320 - 32 * number] for number in range(count)]
    arrays = [mmcv.imrescale(image, (SIDE, SHORT)) for image in arrays]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return [((torch.from_numpy(one).double() - mean) / std).permute(2, 0, 1) for one in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', help='folder of images; default: rendered scenes')
    parser.add_argument('--count', type=int, default=4, help='number of images')
    parser.add_argument('--out', help='file for the tables')
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = read_images(args.images, args.count)
    pyramid = {'model.neck.in_channels': list(ARCH['channels'])}
    narrow = {**pyramid, 'model.neck.out_channels': 64}
    narrow |= {'model.rpn_head.in_channels': 64, 'model.rpn_head.feat_channels': 64}
    narrow |= {f'model.roi_head.{name}_roi_extractor.out_channels': 64 for name in ('bbox', 'mask')}
    narrow |= {f'model.roi_head.{name}_head.in_channels': 64 for name in ('bbox', 'mask')}
    queries = {'model.panoptic_head.in_channels': list(ARCH['channels'])}
    encoder = {'model.neck.in_channels': list(ARCH['channels'][1:])}
    heads = {'model.decode_head.in_channels': list(ARCH['channels']), 'model.decode_head.channels': 64}
    heads |= {'model.auxiliary_head.in_channels': ARCH['channels'][2], 'model.decode_head.norm_cfg.type': 'BN'}
    heads |= {'model.auxiliary_head.norm_cfg.type': 'BN'}
    rows: dict[str, list[float]] = {}
    for valid in (False, True):
        value = float('nan') if valid else 0.0
        found = measure(detector_run(build(DETECTOR, 'mmdet', narrow, valid)), images, value)
        segmentor = measure(segmentor_run(build(SEGMENTOR, 'mmseg', heads, valid)), images, value)
        transformer = measure(mask2former_run(build(MASK2FORMER, 'mmdet', queries, valid)), images, value)
        atss = measure(atss_run(build(ATSS, 'mmdet', pyramid, valid)), images, value)
        dino = measure(dino_run(build(DINO, 'mmdet', encoder, valid)), images, value)
        found |= {f'UperNet {key}': one for key, one in segmentor.items()}
        found |= {f'Mask2Former, {key}': one for key, one in transformer.items()}
        found |= {f'ATSS, {key}': one for key, one in atss.items()}
        found |= {f'DINO, {key}': one for key, one in dino.items()}
        for name, number in found.items():
            rows.setdefault(name, []).append(number)
    lines = ['| Output | padding counts | `valid_sites=True` |', '| --- | --- | --- |']
    lines += [f'| {name} | {off:.2g} | {on:.2g} |' for name, (off, on) in rows.items()]
    seconds = step_seconds()
    off, on = seconds.values()
    ratio = statistics.median(b / a for a, b in zip(off, on))
    lines += ['', '| Step | CPU seconds, median |', '| --- | --- |']
    lines += [f'| {name} | {statistics.median(values):.3f} |' for name, values in seconds.items()]
    lines += [f'| ratio | {ratio:.3f} |']
    print('\n'.join(lines))
    if args.out:
        Path(args.out).write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
