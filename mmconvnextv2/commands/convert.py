"""Command line of ``tools/convert_checkpoint.py``."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ..checkpoint.convert import (
    LAYOUT_NAMES,
    check_target,
    check_written,
    convert_training_file,
    read_weight_file,
    write_converted,
)
from ..checkpoint.provenance import describe_provenance
from .arguments import add_config_options


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/convert_checkpoint.py``."""
    parser = ArgumentParser(
        description='Convert ConvNeXt weights between layouts; .safetensors is the recommended output: reading it '
        'cannot run code, even from an untrusted source.',
        epilog='Example: python tools/convert_checkpoint.py work_dirs/fcmae/epoch_800.pth atto.safetensors --to timm',
    )
    parser.add_argument('source', help='a checkpoint in any known layout, a path or a URL')
    parser.add_argument('target', help='the file to write, .safetensors, .pth, .pt or .bin')
    parser.add_argument('--to', default='canonical', choices=LAYOUT_NAMES, help='layout to write (default canonical)')
    parser.add_argument('--force', action='store_true', help='overwrite the target')
    add_weights_choice(parser)
    parser.add_argument(
        '--check',
        action='store_true',
        help='compare the outputs of both files on random images, each in its own library',
    )
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument('--classifier', action='store_true', help='convert a whole classifier with its head')
    whole.add_argument(
        '--pretraining',
        action='store_true',
        help='convert a whole FCMAE model with its decoder (only between canonical and official-sparse)',
    )
    whole.add_argument(
        '--training',
        metavar='CONFIG',
        help='convert a whole training checkpoint, to resume with this FCMAE config or from it',
    )
    parser.add_argument(
        '--epoch-length', type=int, help='iterations per epoch of CONFIG (default: those of the official run)'
    )
    add_config_options(parser)
    args = parser.parse_args(argv)
    if args.training and (args.check or args.weights != 'default'):
        parser.error('--training goes with neither --check, --ema nor --raw')
    if args.check and args.pretraining:
        parser.error('--check compares backbones: leave --pretraining out')
    return args


def add_weights_choice(parser: ArgumentParser) -> None:
    """Add ``--ema`` and ``--raw``, which set ``weights`` for :func:`mmconvnextv2.checkpoint.extract_state_dict`."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        '--ema',
        dest='weights',
        action='store_const',
        const='ema',
        default='default',
        help='take the moving average of the checkpoint',
    )
    chosen.add_argument(
        '--raw',
        dest='weights',
        action='store_const',
        const='raw',
        help='take the trained weights that the checkpoint stores next to a moving average',
    )


def convert(args: Namespace) -> None:
    """Entry point of ``tools/convert_checkpoint.py``: convert, and print what was written."""
    if args.training:
        print(
            convert_training_file(
                args.source, args.target, args.to, args.training, args.cfg_options, args.epoch_length, args.force
            )
        )
        return
    check_target(args.target, args.force)
    source = read_weight_file(args.source, args.weights)
    print(write_converted(source, args.target, args.to, args.pretraining, args.classifier))
    provenance = describe_provenance(source.path, source.model.as_backbone())
    if provenance:
        print(provenance)
    if args.check:
        print(check_written(source, args.target))
