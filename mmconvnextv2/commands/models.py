"""``tools/models.py``: the public models that can be used by name."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ..checkpoint.download import download
from ..checkpoint.load import load_file
from ..utils.errors import UserError
from ..utils.public_models import list_models, public_models
from .arguments import add_traceback, add_weights_dir

COLUMNS = ('name', 'task', 'size', 'started from', 'published', 'MB', 'weights by', 'licence of the weights')


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the arguments of ``tools/models.py``."""
    parser = ArgumentParser(
        description='List public models. Their names work in place of CONFIG CHECKPOINT, as a checkpoint, and in '
        'model.backbone.init_cfg.checkpoint. Nothing is downloaded without --download.',
        epilog='Example: python tools/models.py mask-rcnn',
    )
    parser.add_argument('pattern', nargs='?', default='*', help='part of a name, recipe or task, or a pattern with *')
    parser.add_argument('--download', action='store_true', help='download the weights of all that match')
    parser.add_argument('--verbose', action='store_true', help='also print the recipe and the address of each')
    add_weights_dir(parser)
    add_traceback(parser)
    return parser.parse_args(argv)


def models(args: Namespace) -> None:
    """Entry point of ``tools/models.py``.

    Raises:
        ValueError: If no model matches.
    """
    found = list_models(args.pattern)
    if not found:
        raise UserError(f'none of the {len(public_models())} public models matches {args.pattern!r}')
    rows = [
        (one.name, one.task, one.size, one.start, one.published or '-', str(one.megabytes), one.provenance, one.licence)
        for one in found
    ]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    for model, row in zip([None, *found], [COLUMNS, *rows]):
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if args.verbose and model is not None:
            print(f'    {model.config}\n    {model.weights}')
    print('None of them was evaluated here; MB counts parameters in float32.')
    if args.download:
        for model in found:
            print(download(model.weights, load_file))
