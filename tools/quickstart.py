"""Pretrain, convert, fine-tune and evaluate on the embedded data set in about ten minutes on two cores."""

from mmconvnextv2.commands.quickstart import parse_args, quickstart
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(quickstart, parse_args())
