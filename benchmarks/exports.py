"""What half precision, compiled code and ONNX files change in a trained detector or segmentor, and what they save.

Each way predicts the test set of the config, image by image: AP or mIoU, the largest deviation of boxes and masks or of
labels, and the median of milliseconds per image, with reading left out.

    python benchmarks/exports.py configs/quickstart/mask-rcnn.py epoch_6.pth --ways float32 onnx onnx-int8

Without a config, it compares a recipe of every kind that is exported, with random weights, on photos:

    python benchmarks/exports.py --photos FOLDER
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path

import mmcv
import numpy as np
import torch
from huge_images import randomise
from mmengine.config import DictAction
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

import mmconvnextv2
from mmconvnextv2.commands.runner import build_runner
from mmconvnextv2.datasets.image_files import list_images, read_rgb
from mmconvnextv2.export.detectors import agreement, paste
from mmconvnextv2.export.graphs import GraphOptions, default_part, read_graph
from mmconvnextv2.export.runtimes import FileOptions, export_onnx
from mmconvnextv2.utils.config import load_config

FILES = {
    'onnx': ({}, {}),
    'onnx-half': (dict(half=True), {}),
    'onnx-int8': ({}, dict(int8=True)),
    'onnx-hard-nms': (dict(nms='hard'), {}),
}
SPEEDS = {
    'float32': {},
    'bfloat16': dict(amp='bfloat16'),
    'float16': dict(amp='float16'),
    'compiled': dict(compile=True),
}
METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'pascal_voc/mAP', 'mIoU')
WARM_UP = 2
PHOTO = (480, 640)  # height and width of the photos on which recipes are compared
RECIPES = (
    'faster_rcnn/faster-rcnn_convnextv2-t_fpn_1x_coco.py',
    'mask_rcnn/mask-rcnn_convnextv2-t_fpn_1x_coco.py',
    'cascade_mask_rcnn/cascade-mask-rcnn_convnextv2-t_fpn_ms-crop-3x_coco.py',
    'retinanet/retinanet_convnextv2-t_fpn_1x_coco.py',
    'atss/atss_convnextv2-t_fpn_1x_coco.py',
    'rtmdet/rtmdet-l_convnextv2-t_100e_coco.py',
    'dino/dino_convnextv2-t_4scale-12e_coco.py',
    'upernet/upernet_convnextv2-t_160k_ade20k-512x512.py',
    'semantic_fpn/semantic-fpn_convnextv2-t_160k_ade20k-512x512.py',
    'classification/convnextv2-t_fcmae-ft_in1k-224.py',
)


class File:
    """An ONNX file that takes the place of a model in an evaluation."""

    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
        self.seconds = 0.0

    def test_step(self, data):
        """Predict a batch of one image of a data loader."""
        (image,), (sample,) = data['inputs'], data['data_samples']
        pixels = image.numpy()[::-1][None].astype(np.float32)  # as the files of our recipes read them: RGB
        outputs = [torch.from_numpy(each) for each in self.session.run(None, dict(images=pixels))]
        if outputs[0].ndim == 2:
            sample.pred_score = outputs[0][0].softmax(0)
            return [sample]
        if len(outputs) == 1:
            logits = torch.nn.functional.interpolate(outputs[0], sample.ori_shape[:2], mode='bilinear')
            sample.pred_sem_seg = PixelData(data=logits.argmax(1))
            return [sample]
        boxes, scores, labels, *masks = (output[0][outputs[1][0] > 0] for output in outputs)
        boxes = boxes / boxes.new_tensor([*sample.scale_factor, *sample.scale_factor])
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        if masks:
            sample.pred_instances.masks = paste(masks[0][None], boxes[None], sample.ori_shape[:2])[0] >= 0.5
        return [sample]


def evaluate(cfg, predict, limit):
    """Return the metrics of a way, its predictions, and the median seconds per image."""
    runner = build_runner(cfg, whole=True)
    loop, found, seconds = runner.build_test_loop(runner._test_loop), [], []
    for number, data in enumerate(loop.dataloader):
        if limit and number == limit:
            break
        started = time.perf_counter()
        samples = predict(data)
        seconds.append(time.perf_counter() - started)
        found += [sample.cpu() for sample in samples]
        loop.evaluator.process(data_samples=samples, data_batch=data)
    metrics = loop.evaluator.evaluate(len(found))
    return metrics, found, statistics.median(seconds[WARM_UP:])


def deviation(expected, found):
    """Describe how predictions differ from float32's in PyTorch."""
    if 'pred_score' in expected[0]:
        apart = max((one.pred_score - two.pred_score).abs().max().item() for one, two in zip(expected, found))
        return f'{apart:.1e} of probability'
    if 'pred_sem_seg' in expected[0]:
        shares = [(one.pred_sem_seg.data != two.pred_sem_seg.data).double().mean() for one, two in zip(expected, found)]
        return f'{max(shares).item():.3%} of labels'
    total, masks = [0, 0, 0.0], []
    for one, two in zip(expected, found):
        one, two = ([each[None].cpu() for each in (x.bboxes, x.scores, x.labels)] for x in
                    (one.pred_instances, two.pred_instances))  # fmt: skip
        same = agreement(one, two, 0.05)
        total = [total[0] + same.count, total[1] + same.lost, max(total[2], same.pixels)]
    for one, two in zip(expected, found):
        one, two = one.pred_instances, two.pred_instances
        if 'masks' in one and len(one) and len(two):
            near = (one.bboxes[:, None] - two.bboxes).abs().amax(-1) + 1e6 * (one.labels[:, None] != two.labels)
            gap, places = near.min(1)
            pairs = one.masks[gap < 3].flatten(1), two.masks[places[gap < 3]].flatten(1)
            union = (pairs[0] | pairs[1]).sum(1)
            masks += ((pairs[0] & pairs[1]).sum(1)[union > 0] / union[union > 0]).tolist()
    text = f'{total[0] - total[1]} of {total[0]} boxes, {total[2]:.1e} px'
    return text + (f', mask IoU {min(masks):.3f}' if masks else '')


def compare_recipes(args):
    """Print one row per recipe: onnxruntime against PyTorch, in turns, on photos, with random weights."""
    photos = [mmcv.imresize(read_rgb(path), PHOTO[::-1]) for path in list_images([args.photos])[: args.images or 6]]
    print(f'{len(photos)} photos of {PHOTO[0]} x {PHOTO[1]}, {torch.get_num_threads()} threads')
    print('| Recipe | onnxruntime against PyTorch | PyTorch, ms | onnxruntime, ms | MiB |')
    print('| --- | --- | --- | --- | --- |')
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory() as folder:
            print(compare_recipe(recipe, photos, Path(folder)), flush=True)


def compare_recipe(recipe, photos, folder):
    """Return the row of a recipe."""
    cfg = load_config(f'configs/{recipe}')
    cfg.model.backbone.init_cfg = cfg.load_from = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(cfg.model))  # DINO's builder changes its config
        randomise(model)
        for name, parameter in model.named_parameters():
            if 'fc_cls' in name:  # or no class of 80 reaches the score threshold
                parameter.data *= 3
        checkpoint, path = str(folder / 'model.pth'), str(folder / 'model.onnx')
        torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
        options = FileOptions(size=PHOTO if cfg.default_scope != 'mmpretrain' else (224, 224))
        export_onnx(read_graph(cfg, checkpoint, default_part(cfg)), path, options)
        ways = [mmconvnextv2.load(cfg, checkpoint, 'cpu').module.test_step, File(path).test_step]
        found, seconds = ([], []), ([], [])
        with torch.inference_mode():
            for photo in photos:
                for way, predict in enumerate(ways):
                    data = to_data(photo if cfg.default_scope != 'mmpretrain' else photo[:224, :224], cfg.default_scope)
                    started = time.perf_counter()
                    found[way].extend(predict(data))
                    seconds[way].append(time.perf_counter() - started)
        torch_ms, onnx_ms = (1e3 * statistics.median(each[WARM_UP:]) for each in seconds)
        size = os.path.getsize(path) / 2**20
    return f'| {Path(recipe).stem} | {deviation(*found)} | {torch_ms:.0f} | {onnx_ms:.0f} | {size:.0f} |'


def to_data(photo, scope):
    """Return what a data loader returns for an RGB photo."""
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    elif scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmpretrain.structures import DataSample as Sample
    size = photo.shape[:2]
    facts = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    pixels = torch.from_numpy(np.ascontiguousarray(photo[:, :, ::-1].transpose(2, 0, 1)))
    return dict(inputs=[pixels], data_samples=[Sample(metainfo=facts)])


def main():
    """Print one row per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--photos', help='folder of photos, for a comparison of recipes')
    parser.add_argument('--recipes', nargs='+', default=RECIPES)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    parser.add_argument('--ways', nargs='+', choices=[*SPEEDS, *FILES], default=['float32', 'bfloat16', *FILES])
    parser.add_argument('--images', type=int, help='number of images; default the whole test set')
    args = parser.parse_args()
    if args.photos:
        return compare_recipes(args)
    if not args.config or not args.checkpoint:
        parser.error('expected CONFIG and CHECKPOINT, or --photos FOLDER')
    cfg = load_config(args.config, args.cfg_options)
    cfg.test_dataloader.update(batch_size=1, num_workers=0, persistent_workers=False)
    cfg.load_from, cfg.launcher = None, 'none'
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        reference, rows = None, []
        for way in dict.fromkeys(['float32', *args.ways]):
            if way in SPEEDS:
                model = mmconvnextv2.load(cfg, args.checkpoint, 'cpu', **SPEEDS[way])
                predict, size = model.module.test_step, os.path.getsize(args.checkpoint)
            else:
                graph, file = (kind(**options) for kind, options in zip((GraphOptions, FileOptions), FILES[way]))
                path = os.path.join(folder, f'{way}.onnx')
                export_onnx(read_graph(cfg, args.checkpoint, default_part(cfg), graph), path, file)
                predict, size = File(path).test_step, os.path.getsize(path)
            with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.inference_mode():
                metrics, found, seconds = evaluate(cfg, predict, args.images)
            reference = reference or found
            numbers = ' / '.join(f'{metrics[name]:.3f}' for name in METRICS if name in metrics)
            rows.append(
                f'| {way} | {numbers} | {deviation(reference, found)} | {seconds * 1e3:.0f} | {size / 2**20:.1f} |'
            )
    names = ' / '.join(name for name in METRICS if name in metrics)
    print(f'\n{len(found)} images, {torch.get_num_threads()} threads, torch {torch.__version__}')
    print(f'| Way | {names} | Against float32 | ms | MiB |\n| --- | --- | --- | --- | --- |')
    print('\n'.join(rows))


if __name__ == '__main__':
    main()
