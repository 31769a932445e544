"""Evaluate a checkpoint: ``python tools/test.py --help`` shows an example."""

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.test import parse_test_args, test

if __name__ == '__main__':
    run_tool(test, parse_test_args())
