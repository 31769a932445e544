"""Items of gpu_check.py: each is a function of a :class:`Setting` that returns figures, or raises."""

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = dict(base=(128, 256, 512, 1024), atto=(40, 80, 160, 320), huge=(352, 704, 1408, 2816))
DTYPES = dict(bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32)
ITEMS = []


class Setting(NamedTuple):
    """Where items run.

    Attributes:
        device (torch.device): Device.
        narrow (bool): Whether shapes are narrow and rounds few.
    """

    device: torch.device
    narrow: bool

    @property
    def on_gpu(self):
        """Whether the device is a GPU."""
        return self.device.type == 'cuda'


def item(name, seconds):
    """Register a function as an item with its time limit."""

    def register(function):
        ITEMS.append((name, seconds, function))
        return function

    return register


def work(device, narrow, names):
    """Print the names and time limits of all items, or run some and print a line for each."""
    if not names:
        print(json.dumps([(name, seconds) for name, seconds, _ in ITEMS]))
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    setting, functions = Setting(torch.device(device), narrow), {name: function for name, _, function in ITEMS}
    for name in names:
        started = time.perf_counter()
        try:
            row = dict(item=name, ok=True, **functions[name](setting))
        except ModuleNotFoundError as error:
            row = dict(item=name, ok=False, skipped=f'needs {error.name}, which is not installed')
        except NeedsGPU as error:
            row = dict(item=name, ok=False, skipped=str(error))
        except Exception as error:
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:600]
            row = dict(item=name, ok=False, error=reason, where=traceback.format_exc()[-500:])
        print(json.dumps({**row, 'took': round(time.perf_counter() - started, 1)}), flush=True)
        if setting.on_gpu:
            torch.cuda.empty_cache()


class NeedsGPU(Exception):
    """An item that only a GPU can run."""


def need_gpu(setting):
    """Raise ``NeedsGPU`` elsewhere than on a GPU."""
    if not setting.on_gpu:
        raise NeedsGPU('needs a GPU')


def timed(setting, step, rounds=15):
    """Return median seconds of a step on the device, and until the host had asked for it."""
    rounds = 1 if setting.narrow else rounds
    for _ in range(1 if setting.narrow else 4):
        step()
    device, host = [], []
    for _ in range(rounds):
        if setting.on_gpu:
            begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
            torch.cuda.synchronize()
            begin.record()
        started = time.perf_counter()
        step()
        host.append(time.perf_counter() - started)
        if setting.on_gpu:
            end.record()
            torch.cuda.synchronize()
            device.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(device or host), statistics.median(host)


def figures(setting, step, images):
    """Return the figures of a step: images per second, milliseconds, and peak memory."""
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, host = timed(setting, step)
    found = dict(images_per_s=round(images / seconds, 1), ms=seconds * 1e3, host_ms=host * 1e3)
    if setting.on_gpu:
        found['peak_MiB'] = torch.cuda.max_memory_allocated() >> 20
    return found


@item('machine', 40)
def machine(setting):
    """What is here."""
    import triton

    found = dict(
        torch=torch.__version__, triton=triton.__version__, python=sys.version.split()[0], cores=os.cpu_count()
    )
    if setting.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= dict(device=properties.name, GiB=properties.total_memory >> 30, cc=torch.cuda.get_device_capability())
    return found


# (a) Whether the kernels are right


def errors_of(device, dtype, channels, stage, narrow):
    """Return the worst relative errors of a stage's kernels and of torch's operations, and what is worst."""
    from launches import cells_of

    from mmconvnextv2.ops.grid import Grid
    from mmconvnextv2.ops.self_check import is_worse, relative_errors

    side, patch = (2, 8 >> stage) if narrow else (7, 8 >> stage)
    cells = cells_of(2, side).to(device)
    grids = [Grid(*[side * patch] * 2, 4 << stage), Grid(*[side * patch] * 2, 4 << stage, visible_cells=cells)]
    device = torch.device(device, torch.cuda.current_device()) if device == 'cuda' else torch.device(device)
    given = torch.float32
    ours, torchs = (
        {
            f'{what} {place}': error
            for place, (what, error) in enumerate(
                relative_errors(device, given, DTYPES[dtype], channels, grids, triton=triton)
            )
        }
        for triton in (True, False)
    )
    worst = max(ours, key=lambda what: ours[what] / (torchs[what] + 1e-7))
    suspicious = any(is_worse(error, torchs[what]) for what, error in ours.items())
    return dict(kernels=max(ours.values()), torch=max(torchs.values()), worst=worst, suspicious=suspicious)


def right(setting, size):
    """Kernels and torch's operations against float64, all gradients, all stages, maps and cells, three dtypes.

    Triton compiles about 24 kernels per stage and dtype, so each has a process.
    """
    dtypes = [name for name in DTYPES if setting.on_gpu or name != 'fp16']
    jobs = [(dtype, stage) for dtype in dtypes for stage in range(4)]
    if not setting.on_gpu and os.environ.get('TRITON_INTERPRET') != '1':
        raise NeedsGPU('needs a GPU, or TRITON_INTERPRET=1')
    if setting.narrow:
        found = [errors_of(setting.device.type, 'bf16', 8, 3, True)]
    else:
        with ProcessPoolExecutor(min(12, os.cpu_count()), multiprocessing.get_context('spawn')) as pool:
            futures = [
                pool.submit(errors_of, setting.device.type, dtype, WIDTHS[size][stage], stage, False)
                for dtype, stage in jobs
            ]
            found = [future.result() for future in futures]
    wrong = [(job, one) for job, one in zip(jobs, found) if one['suspicious']]
    if wrong:
        raise AssertionError(f'kernels are less exact than torch: {wrong}')
    return {
        f'{dtype}_{who}': max(one[who] for (kind, _), one in zip(jobs, found) if kind == dtype)
        for dtype in dtypes
        for who in ('kernels', 'torch')
        if any(kind == dtype for (kind, _), _ in zip(jobs, found))
    }


for _size, _seconds in (('base', 100), ('atto', 80), ('huge', 100)):
    item(f'right, {_size}', _seconds)(lambda setting, size=_size: right(setting, size))


def block_of(setting, channels=256, side=4, packed=False, batch=2, kernels=None, patch=4):
    """Return a block's step under autocast, as a function of a dtype that returns output and gradients."""
    from launches import make_block

    channels = 8 if setting.narrow else channels
    block, sites, grid, execution = make_block(packed, batch, channels, side, patch, 0.0, setting.device)
    block.kernels = kernels

    def step(dtype=torch.bfloat16, scale=1.0):
        with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
            output = block(sites, grid, execution)
        wanted = [sites, *block.parameters()]
        return [output, *torch.autograd.grad((output.float().square().mean() * scale), wanted)]

    step.block = block
    return step


def assert_equal(ours, theirs, tolerance=0.0):
    """Raise if lists of tensors differ by more than a tolerance relative to their norm, or are not finite."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        error = ((one.double() - other.double()).norm() / (other.double().norm() + 1e-30)).item()
        assert error <= tolerance, f'tensor {place} differs by {error:.1e}'


@item('poisoned memory', 60)
def poisoned(setting):
    """Results are finite and the same where new memory is full of NaN."""
    for packed in (False, True):
        step = block_of(setting, packed=packed)
        expected = step()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            found = step()
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(one.isfinite().all() for one in found), 'NaN of unwritten memory got into a result'
        assert_equal(found, expected, 0.0 if setting.narrow else 1e-2)
    return {}


@item('twice the same bits', 40)
def twice(setting):
    """A second forward and backward pass has the bits of the first."""
    for packed in (False, True):
        step = block_of(setting, packed=packed)
        for one, other in zip(step(), step(), strict=True):
            assert torch.equal(one, other), 'two passes differ'
    return {}


@item('side stream, graph capture', 60)
def streams(setting):
    """A side stream and a replayed CUDA graph give the results of the usual stream."""
    need_gpu(setting)
    for packed in (False, True):
        step = block_of(setting, packed=packed)
        expected, stream = step(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                found = step()
        torch.cuda.current_stream().wait_stream(stream)
        assert_equal(found, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(captured, expected)
    return {}


@item('inductor', 90)
def inductor(setting):
    """A compiled block, with the kernels inside, gives the results of eager mode."""
    step = block_of(setting)
    expected = step()
    step.block.compile(backend='inductor' if setting.on_gpu else 'aot_eager', dynamic=False)
    assert_equal(step(), expected, 3e-2)
    return {}


@item('GradScaler', 40)
def scaled(setting):
    """Gradients in float16 of a scaled loss are finite and those of float32."""
    step = block_of(setting)
    expected, found = step(torch.float32), step(torch.float16, scale=2.0**14)
    assert_equal(found[1:], [one * 2.0**14 for one in expected[1:]], 5e-2)
    return {}


@item('tensors of 2^31 elements', 60)
def large(setting):
    """The last image of a tensor that 32 bits cannot index is that of the image alone."""
    need_gpu(setting)
    from mmconvnextv2.ops.depthwise_triton import depthwise_norm_sites
    from mmconvnextv2.ops.grid import Grid
    from mmconvnextv2.ops.kernels import gelu

    channels, side, count = 128, 224, 2**31 // (128 * 224 * 224) + 2
    conv = torch.nn.Conv2d(channels, channels, 7, padding=3, groups=channels).to(setting.device)
    norm, grid = torch.nn.LayerNorm(channels, eps=1e-6).to(setting.device), Grid(side, side, 1)
    sites = torch.randn(1, side * side, channels, device=setting.device, dtype=torch.bfloat16)
    many = torch.zeros(count, side * side, channels, device=setting.device, dtype=torch.bfloat16)
    many[-1] = sites[0]

    def run(values):
        values.requires_grad_()
        with torch.autocast('cuda', torch.bfloat16):
            output = depthwise_norm_sites(values, conv, norm, grid)
        gradient = torch.zeros_like(output)
        gradient[-1] = 1
        wanted = torch.autograd.grad(output, [values, conv.weight], gradient)
        return output[-1].detach().clone(), wanted[0][-1].clone(), wanted[1]

    assert_equal(run(many), run(sites), 1e-3)
    del many
    hidden = torch.zeros(1, 2**31 // 512 + 64, 512, device=setting.device, dtype=torch.bfloat16)
    hidden[:, -8:] = torch.randn(8, 512, device=setting.device)
    scale = torch.rand(1, 1, 512, device=setting.device)
    assert_equal(
        [gelu.scaled(hidden, scale, torch.zeros(512, device=setting.device))[:, -8:]],
        [F.gelu(hidden[:, -8:].float()) * scale],
        1e-2,
    )
    return dict(GiB=torch.cuda.max_memory_allocated() >> 30)


# (e) before (b) to (d): whether we are faster, in numbers that people ask for


def pretraining(setting, execution, batch, kernels=True, mode=None):
    """Figures of a step of FCMAE Base in bfloat16."""
    from contestants import fcmae

    from mmconvnextv2.ops import plain

    size, side = ('atto', 96) if setting.narrow else ('base', 224)
    contestant = fcmae(size, execution, True, 2 if setting.narrow else batch, side, 0.6, setting.device, bf16=True)
    if mode:
        contestant.model.compile_loss(mode=mode, dynamic=False)
    with contextlib.nullcontext() if kernels else plain():
        return figures(setting, contestant.step, 2 if setting.narrow else batch)


for _name, _options, _seconds in (
    ('packed, kernels, batch 64', dict(execution='packed', batch=64), 60),
    ('packed, torch, batch 64', dict(execution='packed', batch=64, kernels=False), 30),
    ('masked, kernels, batch 64', dict(execution='masked', batch=64), 40),
    ('packed, kernels, batch 256', dict(execution='packed', batch=256), 40),
):
    item(f'FCMAE Base, {_name}', _seconds)(lambda setting, options=_options: pretraining(setting, **options))


def backbone(setting, who, batch, side, mode=None, kernels=True, train=True):
    """Figures of a forward and backward pass, or only the forward, of a dense backbone in bfloat16."""
    from mmconvnextv2 import ConvNeXtV2
    from mmconvnextv2.models.convnext_v2 import ARCHS
    from mmconvnextv2.ops import plain

    size, batch, side = ('atto', 1, 64) if setting.narrow else ('base', batch, side)
    torch.manual_seed(0)
    if who == 'timm':
        import timm

        model = timm.create_model(f'convnextv2_{size}', features_only=True)
    elif who == 'mmpretrain':
        from mmpretrain.models.backbones import ConvNeXt

        options = dict(use_grn=True, layer_scale_init_value=0.0, out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
        model = ConvNeXt(dict(ARCHS[size]), **options)
    else:
        model = ConvNeXtV2(size, out_norm=False)
    model.to(setting.device, memory_format=torch.channels_last).train(train)
    run = torch.compile(model, mode=mode, dynamic=False) if mode and setting.on_gpu else model
    images = torch.randn(batch, 3, side, side, device=setting.device).contiguous(memory_format=torch.channels_last)

    def step():
        with torch.autocast(setting.device.type, torch.bfloat16), torch.set_grad_enabled(train):
            loss = sum(one.float().square().mean() for one in run(images))
        if train:
            loss.backward()
            model.zero_grad()

    with contextlib.nullcontext() if kernels else plain():
        found = figures(setting, step, batch)
    if train and mode is None:
        from measure import saved_bytes

        with torch.autocast(setting.device.type, torch.bfloat16):
            kept = saved_bytes(lambda: sum(one.float().square().mean() for one in model(images)), model)
        found['kept_MiB'] = kept >> 20
    return found


for _name, _options, _seconds in (
    ('224 px, batch 64, kernels', dict(who='ours', batch=64, side=224), 40),
    ('224 px, batch 64, timm', dict(who='timm', batch=64, side=224), 30),
    ('224 px, batch 64, timm compiled', dict(who='timm', batch=64, side=224, mode='default'), 90),
    ('224 px, batch 64, torch', dict(who='ours', batch=64, side=224, kernels=False), 30),
    ('1024 px, batch 2, kernels', dict(who='ours', batch=2, side=1024), 40),
    ('1024 px, batch 2, timm', dict(who='timm', batch=2, side=1024), 30),
    ('1024 px, batch 2, mmpretrain', dict(who='mmpretrain', batch=2, side=1024), 30),
    ('inference, 224 px, batch 64, kernels', dict(who='ours', batch=64, side=224, train=False), 30),
    (
        'inference, 224 px, batch 64, timm compiled',
        dict(who='timm', batch=64, side=224, mode='max-autotune-no-cudagraphs', train=False),
        90,
    ),
    ('1024 px, batch 2, timm compiled', dict(who='timm', batch=2, side=1024, mode='default'), 90),
    ('224 px, batch 64, ours compiled', dict(who='ours', batch=64, side=224, mode='default'), 90),
    ('224 px, batch 64, mmpretrain', dict(who='mmpretrain', batch=64, side=224), 30),
):
    item(f'backbone Base, {_name}', _seconds)(lambda setting, options=_options: backbone(setting, **options))

item('FCMAE Base, packed, captured, batch 64', 120)(
    lambda setting: pretraining(setting, 'packed', 64, mode='reduce-overhead' if setting.on_gpu else None)
)


# (c), (d) What operations and a block cost


@item('cost of operations', 90)
def operations(setting):
    """Milliseconds of the depthwise layer's kernels, and of cuDNN in both memory formats, by stage of Base, batch 64;
    and the share of the time in which the fewest bytes could be moved."""
    from mmconvnextv2.ops.kernels import depthwise, gelu, layer_norm

    need_gpu(setting)
    source = torch.empty(2**29, dtype=torch.uint8, device=setting.device)
    seconds, _ = timed(setting, lambda: source.clone())
    bandwidth, found = 2 * source.numel() / seconds, dict(copy_TB_per_s=round(2 * source.numel() / seconds / 1e12, 2))
    for stage, channels in enumerate(WIDTHS['base']):
        side, geometry = 56 >> stage, (56 >> stage, 56 >> stage, 0, None, None)
        sites = torch.randn(64, side * side, channels, device=setting.device, dtype=torch.bfloat16)
        weight, bias = (
            torch.randn(channels, 1, 7, 7, device=setting.device),
            torch.randn(channels, device=setting.device),
        )
        taps, output = depthwise.transpose_taps(weight), torch.empty_like(sites)
        images = sites.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        contiguous, half = images.contiguous(), weight.bfloat16()
        hidden, scale = sites.repeat(1, 1, 4), torch.rand(64, 1, 4 * channels, device=setting.device)
        steps = dict(
            convolve=(2, lambda: depthwise.convolve(sites, taps, bias, output, geometry)),
            weight_gradient=(2, lambda: depthwise.weight_gradient(sites, output, 7, geometry)),
            cudnn_nhwc=(2, lambda: F.conv2d(images, half, None, padding=3, groups=channels)),
            cudnn_nchw=(2, lambda: F.conv2d(contiguous, half, None, padding=3, groups=channels)),
            norm=(2, lambda: layer_norm.forward(sites, bias, bias, 1e-6)),
            gelu_norm=(4, lambda: gelu.norm(hidden, None, keep=False)),
            gelu_scaled=(8, lambda: gelu.scaled(hidden, scale, scale[0, 0])),
        )
        for name, (passes, step) in steps.items():
            seconds, _ = timed(setting, step)
            least = passes * sites.numel() * 2 / bandwidth
            found[f'{channels} {name}'] = f'{seconds * 1e3:.3f} ms, {least / seconds:.0%}'
    return found


@item('a block', 90)
def a_block(setting):
    """Milliseconds of a block's forward and backward pass, device and host, by implementation: C 512, 14 x 14, 64."""
    from timm.models.convnext import ConvNeXtBlock

    channels, side, batch = (8, 2, 2) if setting.narrow else (512, 7, 64)  # cells of 2 x 2 sites
    found = {}
    for kernels in ('auto', 'torch', 'layers'):
        step = block_of(setting, channels, side, batch=batch, kernels=kernels, patch=2)
        device, host = timed(setting, step)
        found[f'ours {kernels}'] = f'{device * 1e3:.3f} ms, host {host * 1e3:.3f}'
    peer = ConvNeXtBlock(channels, use_grn=True, conv_mlp=False, ls_init_value=None).to(setting.device).train()
    images = torch.randn(batch, channels, 2 * side, 2 * side, device=setting.device)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    compiled = torch.compile(peer, dynamic=False) if setting.on_gpu else peer
    for name, block in (('timm', peer), ('timm compiled', compiled)):

        def step(block=block):
            with torch.autocast(setting.device.type, torch.bfloat16):
                output = block(images)
            torch.autograd.grad(output.float().square().mean(), [images, *peer.parameters()])

        device, host = timed(setting, step)
        found[name] = f'{device * 1e3:.3f} ms, host {host * 1e3:.3f}'
    return found


# (f) Whole recipes


def recipe(setting, config, who, channels_last):
    """Figures of a training step of a detector or segmentor in bfloat16."""
    from contestants import downstream

    import_module('mmdet' if 'mask' in config else 'mmseg')  # says what is missing
    batch, side = (2, 64) if setting.narrow else (2, 1024 if 'mask' in config else 512)
    os.chdir(ROOT)
    contestant = downstream(config, batch, side, setting.device, who)
    if channels_last:
        contestant.model.to(memory_format=torch.channels_last)
    loss = contestant.loss

    def cast():
        with torch.autocast(setting.device.type, torch.bfloat16):
            return loss()

    contestant.loss = cast
    return figures(setting, contestant.step, batch)


for _title, _config in (
    ('Mask R-CNN-T', 'configs/mask_rcnn/mask-rcnn_convnextv2-t_fpn_lsj-3x_coco.py'),
    ('UperNet-T', 'configs/upernet/upernet_convnextv2-t_160k_ade20k-512x512.py'),
):
    for _who, _last in (('ours', False), ('mmpretrain', False), ('ours', True)):
        item(f'{_title}, {_who}, {"channels last" if _last else "contiguous"}', 60)(
            lambda setting, config=_config, who=_who, last=_last: recipe(setting, config, who, last)
        )


@item('kernel cases', 120)
def kernel_cases(setting):
    """The tests of the kernels."""
    import pytest  # noqa: F401

    if not setting.on_gpu and os.environ.get('TRITON_INTERPRET') != '1':
        raise NeedsGPU('needs a GPU, or TRITON_INTERPRET=1')
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-c', os.devnull, '--rootdir', str(ROOT)]
    chosen = ['-k', 'serve or trace'] if setting.narrow else []
    run = subprocess.run(
        [*command, str(ROOT / 'tests/test_ops/kernel_cases.py'), *chosen], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout[-800:]
    return dict(said=run.stdout.splitlines()[-1])
