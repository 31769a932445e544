"""Convert ConvNeXt V2 backbone weights between layouts.

Example: python tools/convert_checkpoint.py work_dirs/fcmae/epoch_800.pth backbone.pth --to official-dense
"""
import argparse
import os
import sys

import torch

from mmconvnextv2.checkpoint import DIALECTS, detect_dialect, from_canonical, to_canonical, unwrap
from mmconvnextv2.safe_loading import load_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', help='a checkpoint in any known layout')
    parser.add_argument('target', help='the file to write')
    parser.add_argument('--to', default='canonical', choices=['canonical', *DIALECTS])
    parser.add_argument('--force', action='store_true', help='overwrite the target')
    args = parser.parse_args()
    if os.path.exists(args.target) and not args.force:
        sys.exit(f'{args.target} exists: choose another name, or overwrite it with --force')
    try:
        state_dict = unwrap(load_file(args.source))
        backbone = to_canonical(state_dict)
        converted = from_canonical(backbone, args.to)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    partial = f'{args.target}.partial'
    torch.save(dict(state_dict=converted), partial)
    os.replace(partial, args.target)
    print(f'{args.source} ({detect_dialect(state_dict)}) -> {args.target} ({args.to}): {len(converted)} weights '
          f'written, {len(state_dict) - len(backbone)} dropped (heads, decoders)')


if __name__ == '__main__':
    main()
