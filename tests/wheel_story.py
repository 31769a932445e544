"""A day with the installed package, outside the clone: a config from a recipe by name, train, test, predict, convert.

Run by sessions of noxfile.py, in an environment that has the wheel: ``python wheel_story.py FOLDER [--mim]``. Every
command is printed before it runs; one that fails ends the story. ``--mim`` trains and tests through OpenMMLab's mim.
"""
import subprocess
import sys
import sysconfig
from pathlib import Path

DATA = ('from mmconvnextv2.datasets import EmbeddedSpec, make_embedded\n'
        "make_embedded('work_dirs/quickstart/data', EmbeddedSpec(unlabelled=8, train=8, val=4, size=64))\n")
CONFIG = '''
_base_ = 'mmconvnextv2::quickstart/{task}.py'
narrow = [8, 16, 32, 64]
model = dict(backbone=dict(arch=dict(_delete_=True, depths=[1, 1, 2, 1], channels=narrow), init_cfg=None), {heads})
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
{schedule}
'''
SEGMENTATION = CONFIG.format(
    task='upernet', heads='decode_head=dict(in_channels=narrow, channels=16), '
    'auxiliary_head=dict(in_channels=32, channels=16)',
    schedule='train_cfg = dict(max_iters=4, val_interval=4)\n'
    'default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=2))')
DETECTION = CONFIG.format(
    task='mask-rcnn', heads='neck=dict(in_channels=narrow)',
    schedule='train_cfg = dict(max_epochs=1, val_interval=1)\n'
    'default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))')
COMPARISON = '''
import torch
from mmconvnextv2.checkpoint import to_canonical, unwrap
from mmconvnextv2.safe_loading import load_file
one, two = (to_canonical(unwrap(load_file(path))) for path in ('run/iter_4.pth', 'back.safetensors'))
assert all(torch.equal(one[key], two[key]) for key in two)
assert all(key.startswith('norm') for key in one.keys() - two.keys()), one.keys() - two.keys()
'''


class Story:
    """Runs commands in one folder, with the interpreter of the environment under test.

    Args:
        folder (Path): Where everything is written.
        by_mim (bool): Whether mim starts training and testing.
    """

    def __init__(self, folder: Path, by_mim: bool) -> None:
        self.folder, self.by_mim = folder, by_mim
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *command: str) -> str:
        print('$', Path(command[0]).name, *command[1:], flush=True)
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f'{done.stdout[-6000:]}\nfailed with status {done.returncode}')
        return done.stdout

    def python(self, *arguments: str) -> str:
        return self.run(sys.executable, *arguments)

    def train(self, config: str) -> None:
        if self.by_mim:
            output = self.run(self._mim(), 'train', 'mmconvnextv2', config, '--gpus', '0', '--work-dir', 'run')
            assert 'Training finished successfully' in output
        else:
            self.python('-m', 'mmconvnextv2', 'train', config, '--work-dir', 'run')

    def test(self, config: str, checkpoint: str) -> str:
        if self.by_mim:
            output = self.run(self._mim(), 'test', 'mmconvnextv2', config, '--checkpoint', checkpoint,
                              '--work-dir', 'run')
            assert 'Testing finished successfully' in output
            return output
        return self.python('-m', 'mmconvnextv2', 'test', config, checkpoint, '--work-dir', 'run')

    @staticmethod
    def _mim() -> str:
        return str(Path(sys.executable).parent / 'mim')


def check_place(story: Story) -> None:
    """The package comes from site-packages and no link of it leads out of there."""
    home = Path(story.python('-c', 'import mmconvnextv2; print(mmconvnextv2.__file__)').split()[-1]).parent
    assert home == Path(sysconfig.get_path('purelib')) / 'mmconvnextv2', home
    assert not [path for path in home.rglob('*') if path.is_symlink()]


def use(story: Story, config: str, text: str, checkpoint: str, score: str, pictures: str) -> None:
    """A config is trained and evaluated, and its predictions for four pictures drawn."""
    (story.folder / config).write_text(text)
    story.train(config)
    scores = [line for line in story.test(config, checkpoint).splitlines() if f'{score}:' in line]
    print(scores[-1].split('- ')[-1])
    out = f'{config}-predicted'
    story.python('-m', 'mmconvnextv2', 'predict', config, checkpoint, f'work_dirs/quickstart/data/{pictures}', '--out',
                 out)
    assert len(list((story.folder / out / 'drawn').rglob('*.*'))) == 4


def convert(story: Story) -> None:
    """The backbone of the trained segmentor goes to timm's layout and back without a changed bit."""
    story.python('-m', 'mmconvnextv2', 'convert_checkpoint', 'run/iter_4.pth', 'timm.safetensors', '--to', 'timm')
    story.python('-m', 'mmconvnextv2', 'convert_checkpoint', 'timm.safetensors', 'back.safetensors')
    story.python('-c', COMPARISON)


def main() -> None:
    story = Story(Path(sys.argv[1]), '--mim' in sys.argv)
    check_place(story)
    story.python('-c', DATA)
    use(story, 'segment.py', SEGMENTATION, 'run/iter_4.pth', 'mIoU', 'ade/images/validation')
    convert(story)
    if '--without-ops' in sys.argv:
        print('no detection: mmcv has no compiled operations here')
    else:
        use(story, 'detect.py', DETECTION, 'run/epoch_1.pth', 'segm_mAP', 'coco/val2017')
    print('the story ended well')


if __name__ == '__main__':
    main()
