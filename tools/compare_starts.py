"""Does pretraining help? Compare starts of a recipe: ``python tools/compare_starts.py --help`` shows an example."""

from mmconvnextv2.commands.compare import compare_starts, parse_args
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(compare_starts, parse_args())
