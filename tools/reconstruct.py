"""Write original | masked | reconstruction | pasted for pictures, from an FCMAE checkpoint.

Example: python tools/reconstruct.py configs/fcmae/fcmae_convnextv2-atto_1xb64-800e_folder.py epoch_800.pth a.jpg
"""
import argparse

from mmconvnextv2.pretrain.reconstruct import reconstruct_files

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('pictures', nargs='+', help='picture files or folders')
    parser.add_argument('--out', default='reconstruction.png')
    parser.add_argument('--num-images', type=int, default=8, help='rows at most')
    parser.add_argument('--seed', type=int, default=0, help='of crops and masks')
    args = parser.parse_args()
    reconstruct_files(args.config, args.checkpoint, args.pictures, args.out, args.num_images, args.seed)
