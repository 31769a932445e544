"""Reconstruct images with an FCMAE checkpoint: ``python tools/reconstruct.py --help`` shows an example."""

from mmconvnextv2.commands.reconstruct import parse_args, reconstruct
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(reconstruct, parse_args())
