"""Make every script of this environment find mmcv's operators in torchvision's wheels, without a compiler."""

from mmconvnextv2.mmcv_operators.install import main

if __name__ == '__main__':
    main()
