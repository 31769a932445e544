"""Train a grid of learning, decay and drop path rates: ``python tools/sweep.py --help`` shows an example."""

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.sweep import parse_args, sweep

if __name__ == '__main__':
    run_tool(sweep, parse_args())
