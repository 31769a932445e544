"""Check this machine and its packages; see ``mmconvnextv2/commands/doctor.py``."""

import sys

from mmconvnextv2.commands.doctor import main

if __name__ == '__main__':
    sys.exit(bool(main()))
