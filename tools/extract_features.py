"""Write embeddings of images by any model: ``python tools/extract_features.py --help`` shows examples."""

from mmconvnextv2.commands.extract import extract, parse_args
from mmconvnextv2.commands.run_tool import run_tool

if __name__ == '__main__':
    run_tool(extract, parse_args())
