"""Predict for pictures, folders and videos: ``python tools/predict.py --help`` shows an example."""
from mmconvnextv2.command import run_tool
from mmconvnextv2.predict import parse_args, predict

if __name__ == '__main__':
    run_tool(predict, parse_args())
