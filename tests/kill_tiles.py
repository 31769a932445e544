"""Predict a raster in tiles in processes that are killed, for ``test_large_images.py``.

Usage: kill_tiles.py CONFIG CHECKPOINT RASTER FOLDER. Prints the tiles that were done at each kill, by mode, in JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

import mmconvnextv2
from mmconvnextv2.engine.inference import predict_raster
from mmconvnextv2.engine.inference.large_images import GRN_MODES

torch.set_num_threads(1)  # a fork has no threads of a pool


def start(model, path, out, grn):
    """Predict in a child process, and return its id."""
    child = os.fork()
    if not child:
        predict_raster(model, path, str(out), 64, 24, grn)
        os._exit(0)
    return child


def main(config, checkpoint, path, folder):
    """Predict without and with kills, in each mode."""
    model, seen = mmconvnextv2.load(config, checkpoint, 'cpu'), {}
    for grn in GRN_MODES:
        os.waitpid(start(model, path, Path(folder) / f'{grn}-expected', grn), 0)
        out, seen[grn] = Path(folder) / grn, []
        marks = ['sites-1-1', 'sites-2-1'] if grn == 'exact' else ['norms.npz'] if grn == 'two-pass' else []
        for mark in [*marks, 'done-00000-00002.json', 'done-00002-00001.json', 'done-00003-00002.json']:
            child = start(model, path, out, grn)
            while not (out / 'scene.tiles' / mark).exists():
                assert os.waitpid(child, os.WNOHANG) == (0, 0), 'it ended by itself'
                time.sleep(0.0005)
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            seen[grn].append(len(list(out.glob('scene.tiles/done-*'))))
        os.waitpid(start(model, path, out, grn), 0)
    print(json.dumps(seen))


if __name__ == '__main__':
    main(*sys.argv[1:])
