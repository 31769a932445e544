"""Train a model: ``python tools/train.py --help`` shows an example."""

from mmconvnextv2.commands.run_tool import run_tool
from mmconvnextv2.commands.train import parse_train_args, train

if __name__ == '__main__':
    run_tool(train, parse_train_args())
