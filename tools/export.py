"""Write trained models for other programs: ``python tools/export.py --help`` shows an example."""
from mmconvnextv2.command import run_tool
from mmconvnextv2.export.command import parse_args

if __name__ == '__main__':
    args = parse_args()
    run_tool(args.run, args)
