"""Write original | masked | reconstruction | pasted for pictures: ``python tools/reconstruct.py --help``."""
from mmconvnextv2.command import run_tool
from mmconvnextv2.pretrain.reconstruct import parse_args, reconstruct

if __name__ == '__main__':
    run_tool(reconstruct, parse_args())
