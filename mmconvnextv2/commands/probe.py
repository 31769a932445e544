"""``tools/probe.py``: compare models by what their frozen features know, without fine-tuning."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..analysis.models import HELP, AnalyzedModel, load_subjects
from ..models.convnext_v2 import ConvNeXtV2
from ..pretrain import DenseProbeHook, ProbeHook
from ..pretrain.probe import FrozenFeaturesHook
from ..utils.errors import UserError
from .arguments import add_traceback, add_weights_dir

EXAMPLES = f"""examples:
  python tools/probe.py --segment data/street --model mine work_dirs/unlabelled/epoch_100.pth \\
      --model released convnextv2-atto_fcmae --model random atto random
  python tools/probe.py --classify data/labelled --model mine backbone.pth --k 5

{HELP}"""


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/probe.py``."""
    parser = ArgumentParser(
        description='Evaluate frozen features: a linear segmentation head on label PNGs (mIoU), nearest neighbours and '
        'a linear classifier on folders of classes (top-1). Minutes, where fine-tuning takes hours.',
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--model', nargs='+', action='append', required=True, metavar='LABEL SOURCE', help='a model; see below'
    )
    parser.add_argument('--segment', metavar='DIR', help='folder with images and labels, each with train and val')
    parser.add_argument('--classify', metavar='DIR', help='folder with a folder per class')
    parser.add_argument('--image-dir', default='images', help='folder of images for --segment; default images')
    parser.add_argument('--label-dir', default='labels', help='folder of label PNGs for --segment; default labels')
    parser.add_argument('--num-classes', type=int, help='classes of --segment; default all that occur, but 255')
    parser.add_argument('--size', type=int, help='side of the square images in pixels; default 256, classify 224')
    parser.add_argument(
        '--stages',
        type=int,
        nargs='+',
        default=[1, 2, 3],
        help='stages that the head of --segment reads; default 1 2 3',
    )
    parser.add_argument('--k', type=int, default=20, help='number of neighbours of --classify; default 20')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add_weights_dir(parser)
    add_traceback(parser)
    return parser.parse_args(argv)


class FrozenModel(nn.Module):
    """A backbone with the interface of ``FCMAE`` that the probes use.

    Args:
        subject (AnalyzedModel): The backbone, with mean and deviation of its images.
    """

    def __init__(self, subject: AnalyzedModel) -> None:
        super().__init__()
        pixels = dict(mean=list(subject.mean), std=list(subject.std), to_rgb=True)
        self.data_preprocessor = MODELS.build(dict(type='FCMAEDataPreprocessor', **pixels))
        self.backbone = subject.model

    def forward(self, inputs: Tensor, mode: str = 'tensor') -> tuple[Tensor, ...]:
        """Return the backbone's maps of normalised images (B, 3, H, W)."""
        return self.backbone(inputs)


def probe(args: Namespace) -> None:
    """Entry point of ``tools/probe.py``.

    Raises:
        ValueError: If there is nothing to evaluate on, or a model is not a ConvNeXt of this package.
    """
    probes = probes_of(args)
    subjects = load_subjects(args.model, args.device)
    for subject in subjects:
        if not isinstance(subject.model, ConvNeXtV2):
            raise UserError(
                f'--model {subject.label}: {type(subject.model).__name__} has no numbered stages; give weights of a '
                'ConvNeXt, in any layout'
            )
        subject.model.out_indices, subject.model.out_norm = (3,), False
    rows = []
    for subject in subjects:
        scores = {name: score for one in probes for name, score in one.evaluate(_ready(subject, args.device)).items()}
        rows.append([subject.label, *(f'{score:.2f}' for score in scores.values())])
        header = ['model', *scores]
        print(f'{subject.label}: {", ".join(f"{name} {score:.2f}" for name, score in scores.items())}', flush=True)
    print()
    for row in [header, ['---'] * len(header), *rows]:
        print('| ' + ' | '.join(row) + ' |')


def _ready(subject: AnalyzedModel, device: str) -> nn.Module:
    return FrozenModel(subject).to(device).eval()


def probes_of(args: Namespace) -> list[FrozenFeaturesHook]:
    """Return the probes that are asked for, with their data read.

    Raises:
        ValueError: If none is asked for, or the data does not fit.
    """
    probes: list[DenseProbeHook | ProbeHook] = []
    if args.segment:
        size = dict(image_size=args.size) if args.size else {}
        folders = dict(image_dir=args.image_dir, label_dir=args.label_dir)
        counts = dict(num_classes=args.num_classes, batch_size=args.batch_size)
        probes.append(DenseProbeHook(args.segment, stages=args.stages, **folders, **counts, **size))
    if args.classify:
        size = dict(image_size=args.size) if args.size else {}
        probes.append(ProbeHook(args.classify, k=args.k, batch_size=args.batch_size, **size))
    if not probes:
        raise UserError('there is nothing to evaluate on: give --segment DIR, --classify DIR or both')
    for one in probes:
        one.read_data()
    return probes
