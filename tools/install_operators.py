"""Make all scripts of this environment use torchvision's operators for mmcv's, without a compiler."""

from mmconvnextv2.mmcv_operators.install import main

if __name__ == '__main__':
    main()
