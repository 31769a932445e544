"""How ``files/`` was made, by release 0.1 (commit 8705a80), in a clone of it: narrow runs, and all public names.

    git clone . CLONE && cd CLONE && git checkout 8705a80
    PYTHONPATH=. python HERE/tests/test_release_0_1/make_release.py HERE/tests/test_release_0_1/files

It needs compiled mmcv, as 0.1 did. Kept are checkpoints with AdamW's state, the configs that mmengine wrote beside
them, and what the trained models predict.
"""

import json
import pickle
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import torch
from make_data import draw_data

WIDTHS = [4, 8, 8, 12]
BACKBONE = f'backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels={WIDTHS}), init_cfg=None)'
LOADERS = 'num_workers=0, persistent_workers=False, batch_size=2'
DATA = 'work_dirs/release/data'
CONFIGS = {
    'fcmae': f"""
_base_ = '../../configs/quickstart/fcmae.py'
model = dict({BACKBONE}, neck=dict(channels=8))
train_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/unlabelled'))
train_cfg = dict(max_epochs=2)
param_scheduler = [dict(type='LinearLR', by_epoch=False, begin=0, end=2, start_factor=0.1)]
default_hooks = dict(checkpoint=dict(interval=1))
custom_hooks = []
""",
    'mask-rcnn': f"""
_base_ = '../../configs/quickstart/mask-rcnn.py'
model = dict({BACKBONE}, neck=dict(in_channels={WIDTHS}, out_channels=8),
             rpn_head=dict(in_channels=8, feat_channels=8),
             roi_head=dict(bbox_roi_extractor=dict(out_channels=8), mask_roi_extractor=dict(out_channels=8),
                           bbox_head=dict(in_channels=8, fc_out_channels=8),
                           mask_head=dict(in_channels=8, conv_out_channels=8, num_convs=1)),
             test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)))
train_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/coco/'))
val_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/coco/'))
test_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/coco/'))
val_evaluator = dict(ann_file='{DATA}/coco/annotations/instances_val2017.json')
test_evaluator = dict(ann_file='{DATA}/coco/annotations/instances_val2017.json')
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
""",
    'upernet': f"""
_base_ = '../../configs/quickstart/upernet.py'
model = dict({BACKBONE}, decode_head=dict(in_channels={WIDTHS}, channels=8),
             auxiliary_head=dict(in_channels=8, channels=8))
train_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/ade'))
val_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/ade'))
test_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/ade'))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
""",
    'classifier': f"""
_base_ = '../../configs/classification/convnextv2-a_fcmae-ft_in1k-224.py'
model = dict({BACKBONE}, head=dict(in_channels=12, num_classes=3))
data_preprocessor = dict(num_classes=3)
metainfo = dict(classes=('checks', 'rings', 'stripes'))
train_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/folders', metainfo=metainfo))
val_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/folders', metainfo=metainfo))
test_dataloader = dict({LOADERS}, dataset=dict(data_root='{DATA}/folders', metainfo=metainfo))
val_evaluator = dict(topk=1)
test_evaluator = dict(topk=1)
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
""",
}


def train(files):
    """Train two epochs or iterations of each task; keep the first checkpoint and the config.

    Returns:
        dict: What the first checkpoints predict, and the sums of FCMAE's last weights.
    """
    found = {}
    for task, text in CONFIGS.items():
        home = Path('work_dirs/release')
        (home / f'{task}.py').write_text(text)
        subprocess.run(
            [sys.executable, 'tools/train.py', str(home / f'{task}.py'), '--work-dir', str(home / task)], check=True
        )
        target = files / task
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copy(home / task / f'{task}.py', target / 'config.py')
        for name in ('epoch_1.pth', 'iter_1.pth'):
            if (home / task / name).is_file():
                shutil.copy(home / task / name, target / name)
                if task != 'fcmae':
                    found[task] = predictions(task, home / task / name)
    return dict(found, fcmae=sums_of_weights(home / 'fcmae' / 'epoch_2.pth'))


def sums_of_weights(path):
    """Return the sum and the sum of absolute values of each weight of a checkpoint."""
    weights = torch.load(path, map_location='cpu', weights_only=False)['state_dict']
    return {name: [float(one.double().sum()), float(one.double().abs().sum())] for name, one in weights.items()}


def predictions(task, checkpoint):
    """Return what ``tools/test.py`` predicts for the images of the validation split, by file name."""
    out = checkpoint.with_suffix('.pkl')
    subprocess.run(
        [
            sys.executable,
            'tools/test.py',
            f'work_dirs/release/{task}.py',
            str(checkpoint),
            '--out',
            str(out),
            '--work-dir',
            str(checkpoint.parent / 'tested'),
        ],
        check=True,
    )
    return {'/'.join(Path(one['img_path']).parts[-2:]): describe(one) for one in pickle.loads(out.read_bytes())}


def describe(sample):
    """Return a prediction in JSON's types: boxes with scores and labels, pixels by label, or scores of classes."""
    if 'pred_instances' in sample:
        found = sample['pred_instances']
        return {key: found[key].tolist() for key in ('bboxes', 'scores', 'labels')}
    if 'pred_sem_seg' in sample:
        return sample['pred_sem_seg']['data'].flatten().bincount(minlength=10).tolist()
    return sample['pred_score'].tolist()


def python_names():
    """Collect the names that docs/api.md lists by module, and those that code blocks of the documents import."""
    names = {}
    for row in re.findall(r'^\| `(mmconvnextv2[\w.]*)` \| (.*) \|$', Path('docs/api.md').read_text(), re.MULTILINE):
        names[row[0]] = re.findall(r'`(\w+)`', row[1])
    for page in sorted([Path('README.md'), *Path('docs').rglob('*.md'), *Path('configs').rglob('*.md')]):
        for module, imported in re.findall(r'from (mmconvnextv2[\w.]*) import ([\w, ]+)', page.read_text()):
            names.setdefault(module, []).extend(name.strip() for name in imported.split(','))
        for module in re.findall(r"imports=\['(mmconvnextv2[\w.]*)'", page.read_text()):
            names.setdefault(module, [])
    for module in names:
        import_module(module)
    return {module: sorted(set(found)) for module, found in sorted(names.items())}


def type_names():
    """Collect what configs name: the classes of this package in mmengine's registries."""
    import mmengine.registry
    from mmengine.registry import Registry

    found = {}
    for key, registry in vars(mmengine.registry).items():
        if isinstance(registry, Registry):
            ours = sorted(
                name for name, value in registry.module_dict.items() if value.__module__.startswith('mmconvnextv2')
            )
            found.update({key: ours} if ours else {})
    for scope in ('mmdet', 'mmseg', 'mmpretrain'):
        for key, registry in vars(import_module(f'{scope}.registry')).items():
            if isinstance(registry, Registry):
                ours = sorted(
                    name for name, value in registry.module_dict.items() if value.__module__.startswith('mmconvnextv2')
                )
                found.update({f'{scope}.{key}': ours} if ours else {})
    return found


def command_lines():
    """Collect the command lines of the documents, lines that go on joined."""
    lines = set()
    for page in sorted([Path('README.md'), *Path('docs').rglob('*.md'), *Path('configs').rglob('*.md')]):
        for block in re.findall(r'```\w*\n(.*?)```', page.read_text(), re.DOTALL):
            for line in block.replace('\\\n', ' ').splitlines():
                found = re.search(r'(?:tools/\w+\.py|-m mmconvnextv2[\w.]*)(?: [^#|>]*)?', line)
                if found:
                    lines.add(' '.join(found[0].split()))
    return sorted(lines)


def modules():
    """Collect all modules."""
    return sorted(
        f'mmconvnextv2.{".".join(path.relative_to("mmconvnextv2").with_suffix("").parts)}'
        for path in Path('mmconvnextv2').rglob('*.py')
        if not path.name.startswith('__')
    )


def tool_options():
    """Collect the options of every tool."""
    options = {}
    for tool in sorted(Path('tools').glob('*.py')):
        text = subprocess.run([sys.executable, str(tool), '--help'], capture_output=True, text=True, check=True).stdout
        options[tool.name] = sorted(set(re.findall(r'(?<![\w-])--[a-z][\w-]*', text)))
    return options


def main(files):
    """Write all of it."""
    draw_data(Path(DATA))
    (files / 'results.json').write_text(json.dumps(train(files), indent=1) + '\n')
    names = dict(
        commands=command_lines(),
        modules=modules(),
        options=tool_options(),
        python=python_names(),
        types=type_names(),
        configs=sorted(str(path) for path in Path('configs').rglob('*.py')),
    )
    (files / 'names.json').write_text(json.dumps(names, indent=1) + '\n')


if __name__ == '__main__':
    main(Path(sys.argv[1]).resolve())
