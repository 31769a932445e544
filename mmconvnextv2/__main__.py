"""Entry point of ``python -m mmconvnextv2 TOOL ...``, which also runs the tools if only the wheel is installed."""

import runpy
import sys

from .utils.config import TOOLS


def main() -> None:
    """Run the tool named by the first argument with the other arguments."""
    tools = {path.stem: str(path) for path in sorted(TOOLS.glob('*.py'))}
    name = sys.argv[1].replace('-', '_') if len(sys.argv) > 1 else '--help'
    usage = (
        'usage: python -m mmconvnextv2 TOOL [ARGUMENTS]\n'
        f'TOOL is one of {", ".join(tools)}; TOOL --help lists its arguments.'
    )
    if name in ('-h', '--help'):
        print(usage)
    elif name not in tools:
        sys.exit(f'{usage}\nerror: there is no tool {name!r}')
    else:
        sys.argv = [tools[name], *sys.argv[2:]]
        runpy.run_path(tools[name], run_name='__main__')


if __name__ == '__main__':
    main()
