"""Pretrain, convert, fine-tune and evaluate on the embedded data set in about ten minutes on two cores.

Example: python tools/quickstart.py --seed 0
"""
import argparse
import sys

from mmconvnextv2.commands.quickstart import main, repository_check

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--work-dir', help='where everything but the data goes; default: work_dirs/quickstart')
    args = parser.parse_args()
    repository_check()
    try:
        main(args.seed, args.work_dir)
    except (RuntimeError, ValueError) as error:
        sys.exit(f'error: {error}')
