"""Command line tools, one module per tool."""
