"""Write one HTML page for a work folder: ``python tools/report.py --help`` shows an example."""

from mmconvnextv2.commands.report import parse_args, report_run
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(report_run, parse_args())
