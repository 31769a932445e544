"""Command line of ``tools/export.py``: one subcommand per kind of file."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import DictAction

from ..checkpoint.convert import check_target
from ..export.graphs import (
    MASKS,
    NMS,
    OUTPUTS,
    PARTS,
    GraphOptions,
    default_part,
    read_graph,
    read_pixels,
)
from ..export.libraries import AnyCheckpoint, export_hugging_face, export_safetensors, export_timm, read_source
from ..export.model_card import ModelCard
from ..export.pixels import PIXELS, SMALLEST
from ..export.runtimes import OPSET, FileOptions, export_onnx, export_program
from ..utils.errors import UserError
from .arguments import add_config_options, check_checkpoint, load_config, settle_name
from .convert import add_weights_choice

TOOL = 'python tools/export.py'
GRAPHS = ('onnx', 'program')
COMMANDS = (*GRAPHS, 'huggingface', 'timm', 'safetensors')
EXAMPLE = f'Example: {TOOL} onnx configs/quickstart/upernet.py iter_400.pth upernet.onnx --half'


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/export.py``; their ``run`` is the function to call with them."""
    parser = ArgumentParser(
        description='Write trained models for other programs. Every file is compared with PyTorch '
        'before the target is replaced.',
        epilog=EXAMPLE,
    )
    commands = parser.add_subparsers(dest='command', required=True)
    argv = _command_first(sys.argv[1:] if argv is None else argv)
    _add_graph(commands.add_parser('onnx', help='ONNX of any batch, height and width'), '.onnx', export_onnx)
    _add_graph(commands.add_parser('program', help='a program for torch.export.load'), '.pt2', export_program)
    hugging_face = commands.add_parser('huggingface', help='a folder for transformers')
    _add_library(
        hugging_face, 'DIR', lambda source, args: export_hugging_face(source, args.out, _card(args), args.size)
    )
    hugging_face.add_argument('--size', type=int, default=224, help='pixels per side of images; default 224')
    timm = commands.add_parser('timm', help='a file for timm.create_model')
    _add_library(timm, 'OUT.safetensors', _timm)
    timm.add_argument('--force', action='store_true', help='overwrite OUT.safetensors and the card OUT.md')
    _add_library(
        commands.add_parser('safetensors', help='a folder with the weights in the canonical layout and a model card'),
        'DIR',
        lambda source, args: export_safetensors(source, args.out, _card(args)),
    )
    args = parser.parse_args(argv)
    if args.command in GRAPHS:
        first = settle_name(parser, args)
        args.out = args.out if first is None else first
        if args.checkpoint is None or args.out is None:
            parser.error('expected CONFIG CHECKPOINT OUT or NAME OUT; `python -m mmconvnextv2 models` lists names')
    return args


def _command_first(argv: Sequence[str]) -> list[str]:
    """Return ``CONFIG CHECKPOINT --to KIND --out FILE`` as ``KIND CONFIG CHECKPOINT FILE``."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--to', choices=COMMANDS)
    parser.add_argument('--out')
    found, rest = parser.parse_known_args(argv)
    if found.to is None:
        return list(argv)
    options = next((place for place, each in enumerate(rest) if each.startswith('-')), len(rest))
    out = [] if found.out is None else [found.out]
    return [found.to, *rest[:options], *out, *rest[options:]]


def _add_graph(parser: ArgumentParser, suffix: str, export: Callable) -> None:
    parser.add_argument('config', help='config file of any recipe, or the name of a public model')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint that it trained; with --part backbone in any layout; none after a name',
    )
    parser.add_argument('out', nargs='?', metavar=f'OUT{suffix}', help='the file to write')
    parser.add_argument(
        '--part',
        choices=PARTS,
        help='what to export; default: the whole detector, segmentor or classifier. FCMAE needs --part backbone',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(224, 288),
        metavar=('HEIGHT', 'WIDTH'),
        help='pixels of the first of two checks, and of the input if it is fixed; default 224 288',
    )
    parser.add_argument('--fixed', action='store_true', help='one image of --size per run, for runtimes that need it')
    parser.add_argument('--half', action='store_true', help='compute in float16, but norms, boxes, scores in float32')
    parser.add_argument(
        '--input',
        choices=PIXELS,
        default='float32',
        help='pixels of 0 to 255 (default float32), or float32 that the caller has normalised',
    )
    parser.add_argument('--output', choices=OUTPUTS, default='logits', help='of a segmentor; default logits')
    parser.add_argument(
        '--nms',
        choices=NMS,
        default='recipe',
        help="of a detector; default the config's, soft-NMS as a loop. hard: NMS in place of soft-NMS. outside: none",
    )
    parser.add_argument(
        '--masks',
        choices=MASKS,
        default='boxes',
        help='of a detector; probabilities on a grid in each box (default), or masks of the size of the input',
    )
    if suffix == '.onnx':
        parser.add_argument('--int8', action='store_true', help='quantise matrix products; smaller and less accurate')
        parser.add_argument('--opset', type=int, default=OPSET, help=f"version of ONNX's operators; default {OPSET}")
    parser.add_argument('--force', action='store_true', help='overwrite the file')
    add_weights_choice(parser)
    add_config_options(parser)
    parser.set_defaults(run=lambda args: run_graph(args, suffix, export))


def _add_library(parser: ArgumentParser, out: str, export: Callable[[AnyCheckpoint, Namespace], str]) -> None:
    parser.add_argument('checkpoint', help='a checkpoint of any layout, a path, a URL or the name of a public model')
    parser.add_argument('out', metavar=out, help='what to write')
    parser.add_argument('--config', help='config that trained it, for the card and the normalisation of images')
    parser.add_argument('--license', default='cc-by-nc-4.0', help="default cc-by-nc-4.0, the official weights'")
    parser.add_argument('--metrics', nargs='+', action=DictAction, help='for the card, name=value ...')
    add_weights_choice(parser)
    add_config_options(parser)
    parser.set_defaults(run=lambda args: run_library(args, export))


def run_graph(args: Namespace, suffix: str, export: Callable[..., Any]) -> None:
    """Write an ONNX file or a program.

    Raises:
        ValueError: See :func:`mmconvnextv2.export.graphs.read_graph` and
            :func:`mmconvnextv2.export.runtimes.export_onnx`.
    """
    check_target(args.out, args.force, (suffix,))
    check_checkpoint(args.checkpoint, 'checkpoint')
    if min(args.size) < SMALLEST:
        raise UserError(f'--size {args.size[0]} {args.size[1]}: each side must have at least {SMALLEST} pixels')
    cfg = load_config(args.config, args.cfg_options)
    options = GraphOptions(args.half, args.input, args.output, args.nms, args.masks)
    exported = read_graph(cfg, args.checkpoint, args.part or default_part(cfg), options, args.weights)
    report = export(
        exported,
        args.out,
        FileOptions(tuple(args.size), args.fixed, getattr(args, 'opset', OPSET), getattr(args, 'int8', False)),
    )
    print(f'{args.out}: {exported.facts["part"]}, {exported.facts["precision"]}, {exported.facts["input"]}')
    print('\n'.join(report))


def run_library(args: Namespace, export: Callable[[AnyCheckpoint, Namespace], str]) -> None:
    """Write weights in the format of another library.

    Raises:
        ValueError: See the functions of :mod:`mmconvnextv2.export.libraries`.
    """
    check_checkpoint(args.checkpoint, 'checkpoint')
    print(export(read_source(args.checkpoint, args.weights), args))


def _timm(source: AnyCheckpoint, args: Namespace) -> str:
    check_target(args.out, args.force, ('.safetensors',))
    return export_timm(source, args.out, _card(args))


def _card(args: Namespace) -> ModelCard:
    metrics = {name: str(value) for name, value in (args.metrics or {}).items()}
    if not args.config:
        return ModelCard(args.license, metrics=metrics)
    pixels = read_pixels(load_config(args.config, args.cfg_options))
    return ModelCard(args.license, os.path.basename(args.config), metrics, pixels)
