"""List public models by name: ``python tools/models.py --help`` shows an example."""

from mmconvnextv2.commands.models import models, parse_args
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(models, parse_args())
