"""Turn an export of a labelling tool into a training set: ``python tools/prepare.py --help`` shows an example."""

from mmconvnextv2.commands.prepare import parse_args, prepare
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(prepare, parse_args())
