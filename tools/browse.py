"""Draw training samples after augmentation: ``python tools/browse.py --help`` shows an example."""

from mmconvnextv2.commands.browse import browse, parse_args
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(browse, parse_args())
