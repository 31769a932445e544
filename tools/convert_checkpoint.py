"""Convert ConvNeXt weights between layouts: ``python tools/convert_checkpoint.py --help`` shows an example."""

from mmconvnextv2.commands.convert import convert, parse_args
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(convert, parse_args())
