"""Compare frozen features of models: ``python tools/probe.py --help`` shows examples."""

from mmconvnextv2.commands.probe import parse_args, probe
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(probe, parse_args())
