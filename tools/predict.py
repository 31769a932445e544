"""Predict for images, folders and videos: ``python tools/predict.py --help`` shows an example."""

from mmconvnextv2.commands.predict import parse_args, predict
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(predict, parse_args())
