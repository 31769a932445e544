"""Count parameters and multiply-adds of a config's model: ``python tools/get_flops.py --help`` shows an example."""

from mmconvnextv2.commands.flops import parse_args, print_costs
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(print_costs, parse_args())
