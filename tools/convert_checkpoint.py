"""Convert ConvNeXt V2 weights between layouts: ``python tools/convert_checkpoint.py --help`` shows an example."""
import argparse
import sys

from mmconvnextv2.convert import LAYOUTS, check_conversion, convert_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Convert ConvNeXt V2 weights between layouts; .safetensors is the recommended output.',
        epilog='Example: python tools/convert_checkpoint.py work_dirs/fcmae/epoch_800.pth atto.safetensors --to timm')
    parser.add_argument('source', help='a checkpoint in any known layout, a path or a URL')
    parser.add_argument('target', help='the file to write, .safetensors or .pth')
    parser.add_argument('--to', default='canonical', choices=LAYOUTS, help='layout to write (default canonical)')
    parser.add_argument('--force', action='store_true', help='overwrite the target')
    parser.add_argument('--pretraining', action='store_true',
                        help='convert a whole FCMAE model with its decoder (canonical and official-sparse alone)')
    parser.add_argument('--check', action='store_true', help='compare the outputs of both layouts on random pictures')
    args = parser.parse_args()
    try:
        print(convert_file(args.source, args.target, args.to, args.force, args.pretraining))
        if args.check:
            print(check_conversion(args.source, args.target))
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == '__main__':
    main()
