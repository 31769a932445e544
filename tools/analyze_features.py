"""Analyse the features of models: ``python tools/analyze_features.py --help`` shows examples."""

from mmconvnextv2.commands.features import parse_args
from mmconvnextv2.commands.run_tool import run_subcommand, run_tool

if __name__ == '__main__':
    run_tool(run_subcommand, parse_args())
