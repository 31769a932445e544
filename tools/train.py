"""Train a model: ``python tools/train.py --help`` shows an example."""
from mmconvnextv2.launch import parse_train_args, train

if __name__ == '__main__':
    train(parse_train_args())
