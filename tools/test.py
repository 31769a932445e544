"""Evaluate a checkpoint: ``python tools/test.py --help`` shows an example."""
from mmconvnextv2.launch import parse_test_args, test

if __name__ == '__main__':
    test(parse_test_args())
