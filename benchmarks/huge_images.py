"""Memory and time of tools/predict.py --tile, and how far tiles are from the whole image; see docs/huge_images.md.

python benchmarks/huge_images.py memory FOLDER --grn tile       # 10,000 x 10,000 x 12; repeat until it is complete
python benchmarks/huge_images.py agreement CONFIG CHECKPOINT IMAGE ... --tile 128 --figure docs/images/seams.png
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
SIDE, BANDS, CLASSES = 10_000, 12, 6
CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmconvnextv2', 'mmconvnextv2.pretrain'])
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[100.] * 12, std=[50.] * 12, pad_val=0, seg_pad_val=255),
    backbone=dict(type='ConvNeXtV2', arch='atto', in_channels=12),
    decode_head=dict(
        type='UPerHead', in_channels=[40, 80, 160, 320], in_index=[0, 1, 2, 3], channels=64, num_classes=6,
        norm_cfg=dict(type='BN'), align_corners=False),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='mmpretrain.LoadMultiChannelImage', channels=12), dict(type='PackSegInputs')]))
"""


def randomise(module: torch.nn.Module) -> None:
    """Set every parameter at random; GRN's gamma and beta are 0 otherwise, and GRN the identity."""
    torch.manual_seed(0)
    for name, value in module.state_dict().items():
        if not value.is_floating_point() or 'running' in name:
            continue
        if value.ndim > 1:
            value.normal_(0, (1.5 / value[0].numel()) ** 0.5)
        else:
            value.normal_(0.5 if 'weight' in name or 'gamma' in name else 0, 0.5)


def write_scene(path: Path) -> None:
    """Write a tiled GeoTIFF of smooth values and noise, window by window."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    generator = np.random.default_rng(0)
    coarse = generator.random((BANDS, 41, 41), np.float32)
    place = dict(crs='EPSG:32633', transform=from_origin(500000, 5000000, 10, 10))
    blocks = dict(tiled=True, blockxsize=512, blockysize=512, compress='deflate', zlevel=1, interleave='pixel')
    size = dict(height=SIDE, width=SIDE, count=BANDS, dtype='uint8')
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, 'w', driver='GTiff', **size, **blocks, **place) as file:
        for top in range(0, SIDE, 512):
            for left in range(0, SIDE, 512):
                high, wide = min(512, SIDE - top), min(512, SIDE - left)
                values = coarse[:, top // 256 : top // 256 + 3, left // 256 : left // 256 + 3]
                smooth = torch.nn.functional.interpolate(
                    torch.from_numpy(values)[None], (high, wide), mode='bilinear', align_corners=True
                )[0].numpy()
                noise = generator.integers(0, 16, (BANDS, high, wide))
                file.write((smooth * 220 + noise + 5).astype(np.uint8), window=Window(left, top, wide, high))


def memory(args) -> None:
    """Predict the scene in a process for at most ``--seconds``, and print its peak memory."""
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, weights, scene = folder / 'atto.py', folder / 'atto.pth', folder / 'scene.tif'
    if not weights.exists():
        config.write_text(CONFIG)
        cfg = Config.fromfile(config)
        from mmconvnextv2.utils.config import import_scope

        import_scope(cfg)
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(cfg.model)
        randomise(model)
        classes = [f'class {one}' for one in range(CLASSES)]
        palette = [(40 * one, 255 - 40 * one, 128) for one in range(CLASSES)]
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes, palette=palette))), weights
        )
    if not scene.exists():
        write_scene(folder / 'partial.tif')
        os.replace(folder / 'partial.tif', scene)
    command = [sys.executable, str(ROOT / 'tools/predict.py'), str(config), str(weights), str(scene)]
    command += ['--out', str(folder / args.grn), '--tile', str(args.tile), '--grn', args.grn, '--device', 'cpu']
    started = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while time.time() - started < args.seconds:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.5)
    else:
        process.kill()
        _, status, usage = os.wait4(process.pid, 0)
    print(
        f'{args.grn}: {time.time() - started:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU, '
        f'{usage.ru_maxrss / 2**20:.2f} GiB at most, {"complete" if not status else f"stopped ({status})"}',
        flush=True,
    )


def agreement(args) -> None:
    """Compare tiles with the whole image, both sides padded to multiples of 32 pixels, on a trained segmentor."""
    from tempfile import TemporaryDirectory

    import mmconvnextv2
    from mmconvnextv2.datasets.rasters import Raster, Window
    from mmconvnextv2.engine.inference.large_images import _Run, _Silent
    from mmconvnextv2.engine.inference.tile_store import TileStore
    from mmconvnextv2.engine.inference.tiles import TileModel
    from mmconvnextv2.engine.inference.whole_image import summed_bins, summing_squares

    class Recorded(_Run):
        """Prediction that keeps its logits; ``given`` replaces the first pass over tiles."""

        given = None

        def _sum_squares(self, tiles, update):
            return self.given or super()._sum_squares(tiles, update)

        def _blend(self, tile, logits):
            if not hasattr(self, 'logits'):
                self.logits = np.zeros((len(logits), self.raster.height, self.raster.width), np.float32)
            total = super()._blend(tile, logits)
            self.logits[(slice(None), *tile.owned.slices())] = total
            return total

    padding = {'model.data_preprocessor.test_cfg': dict(size_divisor=32)}
    model = mmconvnextv2.load(args.config, args.checkpoint, 'cpu', options=padding)
    runner, backbone = TileModel(model), model.module.backbone

    def predict(raster, grn, overlap, given=None):
        with TemporaryDirectory() as folder:
            run = Recorded(runner, raster, args.tile, overlap, grn, 0.3)
            run.store, run.given = TileStore(str(Path(folder) / 'tiles'), {}), given
            run.predict(_Silent)
        return run.logits

    def sums_of(raster, reduction, pools=True):
        """Return what a first pass gives, here from the whole image, reduced by a factor."""
        area = Window(0, 0, raster.height, raster.width)
        data, _ = runner.prepare(raster, area)
        inputs = torch.nn.functional.avg_pool2d(data['inputs'], reduction)
        size = inputs.shape[-2:]
        window = Window(0, 0, *size)
        with torch.inference_mode(), summing_squares(backbone, size, window, window) as sums:
            maps = backbone(inputs)
        return {**sums, **(summed_bins(maps, model.module, size, window, window) if pools else {})}

    overlap = args.tile // 4
    modes = {
        'tile, no overlap': lambda raster: predict(raster, 'tile', 0),
        'tile': lambda raster: predict(raster, 'tile', overlap),
        'reduced 2x': lambda raster: predict(raster, 'two-pass', overlap, sums_of(raster, 2)),
        'reduced 4x': lambda raster: predict(raster, 'two-pass', overlap, sums_of(raster, 4)),
        'reduced 8x': lambda raster: predict(raster, 'two-pass', overlap, sums_of(raster, 8)),
        'two-pass': lambda raster: predict(raster, 'two-pass', overlap),
        'true norms': lambda raster: predict(raster, 'two-pass', overlap, sums_of(raster, 1, False)),
        'true norms and pools': lambda raster: predict(raster, 'two-pass', overlap, sums_of(raster, 1)),
        'exact': lambda raster: predict(raster, 'exact', overlap),
    }
    rows, shown = {name: [] for name in modes}, {}
    for path in args.images:
        with Raster(path) as raster:
            area = Window(0, 0, raster.height, raster.width)
            data, _ = runner.prepare(raster, area)  # at its own resolution, as tiles are
            whole = runner.logits(data)[:, : raster.height, : raster.width].numpy()
            for name, mode in modes.items():
                logits = mode(raster)
                error = np.abs(logits - whole)
                same = (logits.argmax(0) == whole.argmax(0)).mean()
                rows[name].append((error.max(), error.mean() / whole.std(), 100 * (1 - same)))
                shown.setdefault(name, logits.argmax(0))
            shown.setdefault('whole image', whole.argmax(0))
    for name, values in rows.items():
        largest, mean, differ = np.array(values).T
        print(f'| {name} | {largest.max():.2g} | {100 * mean.mean():.3g} % | {differ.mean():.3g} % |')
    if args.figure:
        draw(args.figure, shown, np.array(model.palette, np.uint8))


def draw(path: str, shown: dict, palette: np.ndarray) -> None:
    """Draw the labels of the whole image and of tiles; labels that differ are shown below in red."""
    from matplotlib import pyplot as plt

    names = ['whole image', 'tile, no overlap', 'tile', 'two-pass', 'exact']
    figure, axes = plt.subplots(2, len(names), figsize=(3.2 * len(names), 5.6), layout='constrained')
    for column, name in enumerate(names):
        axes[0, column].imshow(palette[shown[name]])
        axes[0, column].set_title(name)
        axes[0, column].set_axis_off()
        axes[1, column].set_axis_off()
        if column:
            wrong = shown[name] != shown['whole image']
            differ = np.full((*wrong.shape, 3), 240, np.uint8)
            differ[wrong] = [230, 20, 20]
            axes[1, column].imshow(differ)
            axes[1, column].set_title(f'{100 * wrong.mean():.1f} % differ')
    figure.savefig(path, dpi=70)


def main() -> None:
    """Run one measurement."""
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser('memory')
    one.add_argument('folder')
    one.add_argument('--grn', default='tile')
    one.add_argument('--tile', type=int, default=1024)
    one.add_argument('--seconds', type=float, default=460)
    one.set_defaults(run=memory)
    two = commands.add_parser('agreement')
    two.add_argument('config')
    two.add_argument('checkpoint')
    two.add_argument('images', nargs='+')
    two.add_argument('--tile', type=int, default=128)
    two.add_argument('--figure')
    two.set_defaults(run=agreement)
    args = parser.parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
