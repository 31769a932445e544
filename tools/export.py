"""Export trained models to other formats and libraries: ``python tools/export.py --help`` shows an example."""

from mmconvnextv2.commands.export import parse_args
from mmconvnextv2.commands.run_tool import run_subcommand, run_tool

if __name__ == '__main__':
    run_tool(run_subcommand, parse_args())
